// The page of `edgepose stream --view`. One connection, /live, brings pictures and figures of all sources; what it
// carries is described in edgepose/view_server.py. No text from outside becomes markup: textContent throughout.

const STAGES = { // as time goes
  queue: "waiting for its turn", detect: "finding boxes", crop: "cutting out the network's input",
  network: "the landmark network", decode: "heatmaps to landmarks", other: "the rest of the prediction",
  tracking: "tracking and smoothing",
};
const WORDS = {
  opening: "Opening", running: "Live", stalled: "Stalled", reconnecting: "Reconnecting", ended: "Ended",
  failed: "Failed", closed: "Closed", offline: "Offline",
};
const DONE = ["ended", "failed", "closed"];
const SILENCE = 4000; // ms; the server speaks twice a second
const RETRY = [500, 1000, 2000, 4000]; // ms between attempts; the last one repeats

const $ = (selector, root = document) => root.querySelector(selector);
const view = { overlay: true, paused: false, run: null, cards: [], abort: null, heard: 0, tries: 0, farewell: null };

const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const milliseconds = (value, digits = 1) => number(value, value >= 99.95 ? 0 : value >= 9.95 ? 1 : digits);
const count = (value) => value.toLocaleString("en");

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// One source -------------------------------------------------------------------------------------------

class Card {
  constructor(source) {
    this.number = source.source;
    this.root = $("#card").content.firstElementChild.cloneNode(true);
    this.at = (name) => $(`.${name}`, this.root);
    this.canvas = $("canvas", this.root);
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.state = null;
    this.hasPicture = false;
    this.name = ["file", "photo", "folder"].includes(source.kind) ? source.name.split(/[\\/]/).at(-1) : source.name;
    set(this.at("name"), this.name);
    this.at("name").title = source.name;
    this.root.setAttribute("aria-label", source.name);
    this.at("fullscreen").addEventListener("click", () => this.toggleFullscreen());
    this.pointSnapshot();
  }

  pointSnapshot() {
    const link = this.at("snapshot");
    link.href = `/snapshot/${this.number}.jpg?overlay=${view.overlay ? 1 : 0}`;
    link.download = `edgepose-${this.number}.jpg`;
  }

  toggleFullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.at("screen").requestFullscreen?.();
  }

  async showFrame(header, jpeg) {
    const picture = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
    if (this.canvas.width !== picture.width || this.canvas.height !== picture.height) {
      this.canvas.width = picture.width;
      this.canvas.height = picture.height;
    }
    this.context.drawImage(picture, 0, 0);
    picture.close();
    this.hasPicture = true;
    set(this.at("frame"), `${header.frame_size.join(" × ")}  ·  frame ${count(header.frame)}`);
    this.showObjects(header.objects);
  }

  showObjects(objects) {
    const list = this.at("objects");
    const texts = objects.map((object) => {
      const id = object.track_id === undefined ? "" : `#${object.track_id}`;
      const category = (object.category ?? (id ? "" : "object")).replaceAll("_", " ");
      return [id, category, number(object.box_score ?? object.score, 2)];
    });
    const key = JSON.stringify(texts);
    if (key === this.objectsKey) return;
    this.objectsKey = key;
    set(this.at("count"), String(objects.length));
    list.replaceChildren(...texts.map(([id, category, sure]) => {
      const item = element("li", "");
      if (id) item.append(element("span", "id", id), " ");
      if (category) item.append(category, " ");
      item.append(element("span", "sure", sure));
      return item;
    }));
    if (!objects.length) list.append(element("li", "none", "none in this frame"));
  }

  showStats(source) {
    const latency = source.latency_ms;
    set(this.at("p50"), milliseconds(latency?.p50));
    set(this.at("p95"), `p95 ${milliseconds(latency?.p95)}`);
    const over = DONE.includes(source.state);
    set(this.at("fps-out"), over ? "–" : number(source.fps_out));
    set(this.at("fps-in"), over ? "" : `of ${number(source.fps_in)}`);
    set(this.at("dropped"), count(source.dropped));
    const share = source.read ? `${((100 * source.dropped) / source.read).toFixed(1)} %` : "";
    set(this.at("share"), share);
    this.at("dropped").title = `${share} of ${count(source.read)} frames`;
    set(this.at("reconnects"), count(source.reconnects));
    this.showCourse(source.history_ms);
    this.showState(source.state, source.silent_s, source.error);
  }

  showCourse(history) {
    const known = history.filter((value) => value !== null);
    const peak = Math.max(...known, 0);
    const top = peak * 1.08 || 1;
    const offset = 59 - (history.length - 1); // the newest second is at the right edge
    let line = "", area = "", begun = null;
    history.forEach((value, index) => {
      const x = offset + index, y = value === null ? 0 : 20 - (20 * value) / top;
      if (value !== null) {
        line += `${begun === null ? "M" : "L"}${x} ${y.toFixed(2)}`;
        area += begun === null ? `M${x} 20L${x} ${y.toFixed(2)}` : `L${x} ${y.toFixed(2)}`;
        begun ??= x;
      }
      const ends = begun !== null && (history[index + 1] ?? null) === null;
      if (!ends) return;
      if (begun === x) line += `L${x + 0.4} ${y.toFixed(2)}`; // a second on its own is a short dash
      area += `L${x} 20Z`;
      begun = null;
    });
    $(".spark .line", this.root).setAttribute("d", line);
    $(".spark .area", this.root).setAttribute("d", area);
    set(this.at("peak"), known.length ? `highest ${milliseconds(peak)} ms` : "");
    const spoken = known.length ? `from ${number(Math.min(...known))} to ${number(peak)} ms` : "not known yet";
    this.at("spark").setAttribute("aria-label", `Latency over the last minute: ${spoken}`);
  }

  showState(state, silent = null, error = null) {
    const waits = silent !== null && silent >= 1 ? ` for ${Math.floor(silent)} s` : "";
    const pill = this.at("state");
    pill.dataset.state = state;
    set($(".text", pill), state === "stalled" && waits ? `Stalled${waits}` : WORDS[state] ?? state);
    const covers = {
      stalled: `No new frame${waits}`,
      opening: "Opening the source …",
      reconnecting: "The source is lost. Trying again …",
      ended: this.hasPicture ? "The source has ended. This is its last frame." : "The source has ended.",
      failed: "The source has failed.",
      closed: "The stream was closed.",
      offline: "No connection to edgepose.",
    };
    const text = covers[state] ?? (this.hasPicture ? "" : "Waiting for the first frame …");
    const paused = view.paused && state === "running";
    set(this.at("cover"), paused ? "Paused" : text);
    this.at("cover").hidden = !(text || paused);
    this.at("cover").dataset.state = this.hasPicture ? state : "";
    this.at("screen").classList.toggle("dim", Boolean(text) && this.hasPicture && !["ended", "closed"].includes(state));
    const problem = this.at("problem");
    problem.dataset.tone = ["running", "ended", "closed"].includes(state) ? "" : "bad"; // else it was overcome
    set(problem, error ? `${problem.dataset.tone ? "" : "Last trouble: "}${error}` : "");
    problem.hidden = !error;
    this.canvas.setAttribute("aria-label", `${this.name}: ${WORDS[state] ?? state}`);
    if (this.state !== null && this.state !== state) announce(`${this.name}: ${WORDS[state] ?? state}`);
    this.state = state;
  }
}

function announce(text) {
  $("#announcements").textContent = text;
}

// All sources together ---------------------------------------------------------------------------------

class Stages {
  constructor(section) {
    this.bar = $(".bar", section);
    this.parts = {};
    for (const [stage, meaning] of Object.entries(STAGES)) {
      const item = element("li", ""), value = element("b", ""), segment = element("i", stage);
      item.append(element("i", stage), stage, value);
      item.title = `${stage}: ${meaning}`;
      $(".legend", section).append(item);
      this.bar.append(segment);
      this.parts[stage] = { item, value, segment };
    }
  }

  show(stages) {
    const spoken = [];
    for (const [stage, { item, value, segment }] of Object.entries(this.parts)) {
      const { p50 = null, p95 = null } = stages[stage] ?? {};
      item.hidden = p50 === null || p95 < 0.005; // what does not happen at all, as detection where boxes are given
      segment.hidden = item.hidden;
      segment.style.flexGrow = p50 ?? 0;
      segment.title = `${stage}: median ${number(p50, 2)} ms, 95 % within ${number(p95, 2)} ms`;
      set(value, milliseconds(p50, 2));
      if (!item.hidden) spoken.push(`${stage} ${number(p50)}`);
    }
    this.bar.setAttribute("aria-label", `Median milliseconds by stage: ${spoken.join(", ") || "none yet"}`);
  }
}

function showOverview(stats) {
  const states = {};
  for (const { state } of stats.sources) states[state] = (states[state] ?? 0) + 1;
  const total = (name) => stats.sources.reduce((sum, source) => sum + source[name], 0);
  set($("#overview .sum"), Object.entries(states).map(([s, n]) => `${n} ${WORDS[s].toLowerCase()}`).join(", "));
  set($("#overview .rate"), `${number(total("fps_out"))} frames/s`);
  set($("#overview .lost"), `${count(total("dropped"))} dropped of ${count(total("read"))}`);
}

// The connection ---------------------------------------------------------------------------------------

async function* messages(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let chunks = [], held = 0;
  const take = async (size) => {
    while (held < size) {
      const { value, done } = await reader.read();
      if (done) return null;
      chunks.push(value);
      held += value.length;
    }
    const taken = new Uint8Array(size);
    let filled = 0;
    while (filled < size) {
      const part = chunks[0].subarray(0, size - filled);
      taken.set(part, filled);
      filled += part.length;
      if (part.length === chunks[0].length) chunks.shift();
      else chunks[0] = chunks[0].subarray(part.length);
    }
    held -= size;
    return taken;
  };
  for (;;) {
    const lengths = await take(8);
    if (!lengths) return;
    const sizes = new DataView(lengths.buffer);
    const header = await take(sizes.getUint32(0));
    const payload = header && (await take(sizes.getUint32(4)));
    if (!payload) return;
    yield [JSON.parse(decoder.decode(header)), payload];
  }
}

function showStats(stats) {
  if (view.run !== stats.run || view.cards.length !== stats.sources.length) {
    view.run = stats.run;
    view.cards = stats.sources.map((source) => new Card(source));
    $("#sources").replaceChildren(...view.cards.map((card) => card.root));
    const one = view.cards.length === 1;
    $("#sources").className = one ? "one" : "";
    $("#overview").hidden = one;
    for (const card of one ? [] : view.cards) card.at("stages").remove();
    $("#overview .stages").replaceChildren(...$("#card").content.querySelector(".stages").cloneNode(true).children);
    view.stages = new Stages(one ? view.cards[0].at("stages") : $("#overview .stages"));
    set($("#title"), stats.title);
    document.title = `${view.cards.map((card) => card.name).join(", ")} – edgepose`;
  }
  stats.sources.forEach((source, index) => view.cards[index].showStats(source));
  view.stages.show(stats.stages_ms);
  showOverview(stats);
  view.farewell = stats.closing ? (stats.ended ? "ended" : "stopped") : null;
  notice(stats.ended && !stats.closing ? "The stream has ended: these are its last frames and figures." : "");
}

function notice(text, tone = "") {
  const line = $("#notice");
  if (line.textContent !== text && text) announce(text);
  set(line, text);
  line.dataset.tone = tone;
  line.hidden = !text;
}

function connection(state, text = WORDS[state]) {
  $("#connection").dataset.state = state;
  set($("#connection .text"), text);
}

async function watch() {
  const abort = (view.abort = new AbortController());
  const query = `overlay=${view.overlay ? 1 : 0}&video=${view.paused ? 0 : 1}`;
  const response = await fetch(`/live?${query}`, { signal: abort.signal, cache: "no-store" });
  if (!response.ok) throw new Error(await response.text());
  for await (const [header, body] of messages(response.body)) {
    if (abort.signal.aborted) return;
    view.heard = Date.now();
    view.tries = 0;
    if (header.type === "stats") {
      connection("running", "Connected");
      showStats(header);
    } else if (view.cards[header.source]) {
      await view.cards[header.source].showFrame(header, body); // the next one is not taken before: no queue grows
    }
  }
}

function showOffline(reason) {
  connection("offline");
  if (view.farewell !== "ended") for (const card of view.cards) card.showState("offline");
  const told = { ended: "The stream has ended.", stopped: "edgepose was stopped." }[view.farewell];
  notice(`${told ?? "No connection to edgepose."} ${reason} This page goes on by itself when it is back.`
    .replaceAll("  ", " "), told ? "" : "bad");
}

async function watchForever() {
  for (;;) {
    if (document.hidden) await new Promise((go) => document.addEventListener("visibilitychange", go, { once: true }));
    let reason = "";
    view.again = false;
    view.heard = Date.now();
    try {
      await watch();
    } catch (error) {
      if (error.name !== "AbortError" && error.name !== "TypeError") reason = error.message.trim();
    }
    if (view.again) { // the page itself broke off, to ask for something else
      view.again = false;
      continue;
    }
    if (document.hidden) continue;
    showOffline(reason);
    await new Promise((go) => setTimeout(go, RETRY[Math.min(view.tries++, RETRY.length - 1)]));
  }
}

function askAgain() {
  view.again = true;
  view.abort?.abort();
}

setInterval(() => {
  if (Date.now() - view.heard > SILENCE) view.abort?.abort();
}, 1000);
document.addEventListener("visibilitychange", () => document.hidden && view.abort?.abort());

// What one can do --------------------------------------------------------------------------------------

function toggleOverlay() {
  view.overlay = !view.overlay;
  $("#overlay").setAttribute("aria-pressed", String(view.overlay));
  for (const card of view.cards) card.pointSnapshot();
  askAgain();
}

function togglePause() {
  view.paused = !view.paused;
  $("#pause").setAttribute("aria-pressed", String(view.paused));
  set($("#pause span"), view.paused ? "Resume" : "Pause");
  askAgain();
}

$("#overlay").addEventListener("click", toggleOverlay);
$("#pause").addEventListener("click", togglePause);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const focused = view.cards.find((card) => card.root.contains(document.activeElement)) ?? view.cards[0];
  const actions = { o: toggleOverlay, p: togglePause, f: () => focused?.toggleFullscreen() };
  actions[event.key.toLowerCase()]?.();
});

watchForever();
