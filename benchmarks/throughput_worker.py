"""One process of `edgepose bench throughput`: opens a way once or several times, and works when it is told to.

    python -m edgepose.benchmarks.throughput_worker '{"way": "edgepose", ...}'     # the fields of Task, as JSON

It prints ``ready``, then for each line ``go SECONDS`` on its standard input one line of JSON: frames a second of each
lane. It ends with its input.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import cv2
import numpy as np

from edgepose.benchmarks.bench_models import BenchModel, open_model
from edgepose.benchmarks.scenes import Scene
from edgepose.benchmarks.ways import EdgePose, Selection, Way, WayOptions, open_way

__all__ = ["Task", "main"]

WARM_UPS = 2


@dataclass(frozen=True)
class Task:
    """What a process does.

    Attributes:
        way, precision: see ways.py.
        model: its name in tables; and
        source: what :func:`edgepose.benchmarks.bench_models.open_model` takes.
        lanes: Python threads, each with a way of its own.
        threads: of each lane's network and of OpenCV; None: all.
        scene: an .npz file with ``frame`` and ``boxes``; a scene takes longer to render than a way to open.
        frames: in each call; more than one only with ours, which then is ``Predictor.predict_batch``.
        peers: see Selection.
    """

    way: str
    precision: str
    model: str
    source: str
    lanes: int
    threads: int | None
    scene: str
    frames: int = 1
    peers: tuple[str, ...] = ()


def main() -> None:
    """See the module."""
    told = json.loads(sys.argv[1])
    task = Task(**{**told, "peers": tuple(told["peers"])})
    answers = sys.stdout
    with ExitStack() as opened, redirect_stdout(sys.stderr):
        if task.threads is not None:
            cv2.setNumThreads(task.threads)
        model = replace(open_model(task.source), name=task.model)
        with np.load(task.scene) as file:
            shown = Scene(file["frame"], file["boxes"])
        calls = [_call(task, model, shown, opened) for _ in range(task.lanes)]
        for call in calls:
            for _ in range(WARM_UPS):
                call()
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(_rates(calls, float(line.split()[1]), task.frames)), file=answers, flush=True)


def _call(task: Task, model: BenchModel, shown: Scene, opened: ExitStack) -> Callable[[], Any]:
    """What a lane does again and again."""
    factory = Selection(ways=("all",), precisions=("fp32", task.precision), peers=task.peers).factories()[
        task.way, task.precision
    ]
    options = WayOptions(task.threads, task.precision, max_batch=max(16, len(shown.boxes)))
    way: Way = open_way(factory, model, options)
    opened.callback(way.close)
    frame, boxes = shown
    if task.frames == 1:
        return lambda: way(frame, boxes)
    assert isinstance(way, EdgePose)
    return lambda: way.batch([frame] * task.frames, [boxes] * task.frames)


def _rates(calls: list[Callable[[], Any]], seconds: float, frames: int) -> list[float]:
    """Frames a second of each lane, all of them at work for about so long. A lane ends with a whole call."""
    rates = [0.0] * len(calls)
    barrier = threading.Barrier(len(calls))
    failures: list[BaseException] = []

    def work(lane: int) -> None:
        try:
            barrier.wait()
            start = now = perf_counter()
            done = 0
            while now - start < seconds:
                calls[lane]()
                done += 1
                now = perf_counter()
            rates[lane] = done * frames / (now - start)
        except BaseException as error:
            failures.append(error)

    lanes = [threading.Thread(target=work, args=(lane,)) for lane in range(len(calls))]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    if failures:
        raise failures[0]
    return rates


if __name__ == "__main__":
    main()
