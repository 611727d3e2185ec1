"""Blocks of the suites that are no race: streams, tracking, hard photos, training data."""

from __future__ import annotations

from collections.abc import Iterable

from edgepose.benchmarks.records import Label, Record, Row
from edgepose.benchmarks.report_cells import ms, number, ratio, table

__all__ = ["data_loading", "detection", "robustness", "streams", "tracking"]


def streams(record: Record) -> str:
    """Age of a frame and work on it, by way."""
    lines = []
    for row in record.rows:
        if row.labels["measure"] not in {"age", "work"} or row.unit != "ms":
            continue
        at: dict[str, Label] = {key: row.labels[key] for key in ("way", "cameras") if key in row.labels}
        alone = {"way": row.labels["way"]}
        rate = record.find(measure="rate", **at) if "cameras" in at else []
        error = record.find(measure="error", **alone) if "cameras" not in at else []
        single = record.find(measure="frame", **alone) if "cameras" not in at else []
        lead = [other for other in record.find(measure="work", **alone) if other.unit == "ratio"]
        lines.append(
            (
                _cameras(row),
                row.labels["way"],
                ms(row.values["p50"]),
                ms((single or [row])[0].values["p95"]),
                number(rate[0]) if rate else "",
                ratio(lead[0].values) if lead and "cameras" not in at else "",
                f"{error[0].values['mean']:.2f}" if error else "",
            )
        )
    heads = ("", "way", "median, ms", "p95 of frames", "frames/s", "less work than the loop by", "off the truth, px")
    return table(heads, lines)


def _cameras(row: Row) -> str:
    count = row.labels.get("cameras")
    return "work on a frame, mean of ten" if count is None else f"age, {count} camera{'' if count == 1 else 's'}"


def tracking(record: Record) -> str:
    """Jitter at rest, lag in motion, cost."""
    lines: list[tuple[object, ...]] = []
    for row in record.find(measure="jitter"):
        values = row.values
        before = (values["step, raw"], values["spread, raw"])
        after = (values["step, smoothed"], values["spread, smoothed"])
        cells = (f"{old:.2f} -> {new:.2f} px ({old / new:.1f}x)" for old, new in zip(before, after, strict=True))
        lines.append((row.labels["clip"], row.labels["scene"], *cells, "", ""))
    for row in record.find(measure="lag"):
        at = {key: row.labels[key] for key in ("clip", "scene")}
        errors = record.find(measure="error", **at)
        off = "".join(f"{one.values['raw']:.2f} -> {one.values['smoothed']:.2f} px" for one in errors)
        speed = f"{record.value('mean', measure='speed', **at):.2f} sizes/s"
        lines.append((at["clip"], f"{at['scene']}, {speed}", "", "", f"{row.values['added']:.2f} frames", off))
    header = (
        "clip",
        "scene",
        "frame to frame, raw -> smoothed",
        "spread",
        "lag added",
        "off the truth, raw -> smoothed",
    )
    costs = (f"{row.values['p50'] / 1e3:.2g} ms for {row.labels['objects']}" for row in record.find(measure="cost"))
    return table(header, lines) + f"\n\nTracking and smoothing a frame's objects take {', '.join(costs)}."


def robustness(record: Record) -> str:
    """PCK@0.05 and mean error of each model, by kind of pictures; a star where the loss is beyond chance."""
    models = list(dict.fromkeys(row.labels["model"] for row in record.rows))
    lines = []
    for pictures in dict.fromkeys(row.labels["pictures"] for row in record.rows):
        cells = []
        for model in models:
            for statistic in ("PCK@0.05", "mean_error/longer_side"):
                found = record.find(model=model, pictures=pictures, statistic=statistic)
                value = next(row.values["value"] for row in found if "against" not in row.labels)
                shown = f"{value:.3f}" if statistic.startswith("PCK") else f"{100 * value:.1f} %"
                cells.append(shown + (" *" if any(map(_beyond_chance, found)) else ""))
        lines.append((pictures, *cells))
    heads = (f"{model}: {name}" for model in models for name in ("PCK@0.05", "mean error"))
    return table(("", *heads), lines)


def _beyond_chance(row: Row) -> bool:
    """Of a difference: whether its interval leaves out zero."""
    values = row.values
    return "against" in row.labels and "low" in values and (values["low"] > 0 or values["high"] < 0)


def detection(record: Record) -> str:
    """Figures of each detector, by kind of pictures."""
    parts = []
    names = {
        "recall": "recall",
        "precision": "precision",
        "category accuracy": "type right",
        "mAP@0.5": "mAP@0.5",
        "mAP@0.5, categories apart": "with types apart",
        "false detections in a picture": "false detections in each",
    }
    for detector in dict.fromkeys(row.labels["detector"] for row in record.rows):
        of_detector = record.find(detector=detector)
        shown = [name for name in names if any(row.labels["statistic"] == name for row in of_detector)]
        lines = []
        for pictures in dict.fromkeys(row.labels["pictures"] for row in of_detector):
            found = {
                row.labels["statistic"]: row.values["value"]
                for row in record.find(detector=detector, pictures=pictures)
            }
            cells = (f"{found[name]:.2f}" if name in found else "" for name in shown)
            lines.append((pictures, f"{found['objects']:.0f}", *cells))
        heads = ("", "objects", *(names[name] for name in shown))
        parts.append(f"**{detector}**\n\n" + table(heads, lines))
    return "\n\n".join(parts)


def data_loading(record: Record) -> str:
    """Milliseconds of processor time for each image, whole samples and stages."""
    lines: list[Iterable[object]] = []
    for row in record.rows:
        if row.unit != "ms" or "photos" not in row.labels:
            continue
        labels = row.labels
        what = labels.get("stage") or f"{labels['sample']}, augmentation: {labels['augmentation']}"
        lines.append((labels["photos"], what, f"{row.values['mean']:.3g}", f"{1e3 / row.values['mean']:.0f}"))
    return table(("photos, px", "stage or whole sample", "ms an image", "images/s"), lines)
