"""Records with the rows that the suites write, of a machine that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgepose.benchmarks.records import Label, Record, Row

ENVIRONMENT: dict[str, Any] = {
    "date": "2030-01-02T03:04:05+00:00",
    "commit": "0123456789ab",
    "command": "edgepose bench latency --output benchmarks/results",
    "python": "3.11.7",
    "os": "Linux x86_64",
    "versions": {"edgepose": "0.1.0", "numpy": "2.4.6", "onnxruntime": "1.31.1"},
    "cpu": {"name": "Example CPU 9000", "cores": 2, "usable": 2, "flags": ["avx2", "avx512_vnni"]},
    "load_average": [1.5, 1.0, 0.5],
}
WAYS = {
    ("edgepose", "fp32"): 390.0,
    ("edgepose", "int8"): 130.0,
    ("pytorch", "fp32"): 700.0,
    ("rtmlib", "fp32"): 470.0,
    ("rtmlib", "int8"): 300.0,
    ("onnxruntime loop", "fp32"): 480.0,
    ("onnxruntime batched", "fp32"): 440.0,
    ("openvino", "fp32"): 425.0,
}


def times(middle: float) -> dict[str, float]:
    """What timing.summarize tells of times around ``middle``."""
    shares = {"p50": 1, "p95": 1.1, "p99": 1.2, "min": 0.95, "mean": 1.01, "low": 0.99, "high": 1.01}
    return {**{name: middle * share for name, share in shares.items()}, "runs": 30}


def record(suite: str, rows: Iterable[Row], notes: tuple[str, ...] = (), **environment: Any) -> Record:
    """Of the example CPU."""
    command = f"edgepose bench {suite} --output benchmarks/results"
    return Record(suite, "Example CPU 9000", {**ENVIRONMENT, "command": command, **environment}, tuple(rows), notes)


def latency(slower: float = 1.0) -> Record:
    """Two models; ``slower``: how much our own ways take longer than usual."""
    rows: list[Row] = []
    for model, cost in (("resnet50", 1.0), ("garment-landmarks", 0.25)):
        for frame in ("1280x720", "1920x1080", "3840x2160"):
            for key in WAYS:
                if key != ("pytorch", "fp32"):
                    at = {"way": key[0], "model": model, "precision": key[1], "frame": frame}
                    values = {"median": 0.01, "mean": 0.2 if "int8" in key else 0.012, "p99": 1.0, "worst": 2.0}
                    label = {**at, "statistic": "landmark change", "against": "pytorch"}
                    rows.append(Row(label, "px", {**values, "compared": 100, "left out": 3}))
        cases = [("1920x1080", count) for count in (1, 8, 16)] + [("1280x720", 8), ("3840x2160", 8)]
        for frame, boxes in cases:
            rows += _place(model, frame, boxes, cost * (boxes + 0.5) / 8.5, slower)
    return record("latency", rows, ("resnet50: openvino int8 is left out. It was not installed",))


def _place(model: str, frame: str, boxes: int, cost: float, slower: float) -> Iterable[Row]:
    for (way, precision), time in WAYS.items():
        at: dict[str, Label] = {"way": way, "model": model, "boxes": boxes, "frame": frame, "precision": precision}
        total = time * cost * (slower if way == "edgepose" else 1.0)
        yield Row({**at, "stage": "total"}, "ms", times(total))
        if way == "edgepose":
            parts = {"crop": 3.0 * boxes / 8, "network": total - 5.0 * boxes / 8, "decode": 1.5 * boxes / 8}
            for stage, part in parts.items():
                yield Row({**at, "stage": stage}, "ms", times(part))
            yield Row({**at, "stage": "rest"}, "ms", times(total - sum(parts.values())))
            share = 100 * (1 - parts["network"] / total)
            yield Row({**at, "stage": "all but the network"}, "%", {"value": share, "low": share, "high": share})
        for ours in ("fp32", "int8"):
            if (way, precision) != ("edgepose", ours):
                ratio = total / (WAYS["edgepose", ours] * cost * slower)
                other = way if precision == "fp32" else f"{way} {precision}"
                labels = {**at, "way": "edgepose", "precision": ours, "stage": "total", "against": other}
                yield Row(labels, "ratio", {"value": ratio, "low": ratio * 0.99, "high": ratio * 1.01})


def throughput() -> Record:
    """Two arrangements of two ways."""
    rows = []
    for way, rate in (("edgepose", 21.0), ("rtmlib", 17.0)):
        for arrangement, gain in (("one after the other", 1.0), ("two processes, a core each", 1.12)):
            labels = {
                "way": way,
                "arrangement": arrangement,
                "model": "resnet50",
                "frames": 1,
                "boxes": 8,
                "precision": "fp32",
            }
            rows.append(Row(labels, "frames/s", times(rate * gain)))
    return record("throughput", rows)


def startup() -> Record:
    """Two models, warm, the first one cold too."""
    steps = {"start Python": 20, "import numpy": 70, "import cv2": 90, "import the library": 60, "open the model": 55}
    steps |= {"read the photo": 12, "import onnxruntime": 80, "first prediction": 25, "second prediction": 17}
    rows = [Row({"model": "garment-landmarks", "step": "model file"}, "MB", {"value": 7.5})]
    for model, cache in (("garment-landmarks", "warm"), ("resnet50", "warm"), ("garment-landmarks", "cold")):
        for way, more in (("edgepose", 1.0), ("onnxruntime", 0.9), ("rtmlib", 1.4)):
            at = {"way": way, "model": model, "cache": cache}
            cost = more * (3 if cache == "cold" else 1) * (2 if model == "resnet50" else 1)
            rows += [Row({**at, "step": step}, "ms", times(time * cost)) for step, time in steps.items()]
            total = cost * (sum(steps.values()) - steps["second prediction"])
            rows.append(Row({**at, "step": "first result"}, "ms", times(total)))
    at = {"way": "pytorch", "model": "garment-landmarks", "cache": "warm"}
    rows += [
        Row({**at, "step": step}, "ms", times(time)) for step, time in (("start Python", 20), ("import torch", 900))
    ]
    return record("startup", rows)


def settings() -> Record:
    """A dozen settings of two models; the random one has no landmarks to compare."""
    names = [("onnxruntime", "as exported", "fp32", 430, None), ("edgepose", "default", "fp32", 390, 2e-5)]
    names += [("onnxruntime", f"{count} threads", "fp32", 800 / count, 0.0) for count in (1, 2)]
    names += [("openvino", "rewritten", "fp32", 393, 3e-4), ("openvino", "rewritten", "int8", 140, 0.31)]
    names += [("onnxruntime", "rewritten", "int8", 126, 0.28), ("onnxruntime", "as exported", "int8", 240, 0.28)]
    names += [("onnxruntime", "spinning off", "fp32", 455, 0.0), ("onnxruntime", "no graph changes", "fp32", 610, 4e-5)]
    rows = []
    for model in ("resnet50", "random/model"):
        for engine, setting, precision, time, change in names:
            at: dict[str, Label] = {"engine": engine, "setting": setting, "precision": precision, "model": model}
            at |= {"default": 1} if engine == "edgepose" else {}
            for boxes in (1, 8):
                rows.append(Row({**at, "boxes": boxes, "statistic": "time"}, "ms", times(time * boxes / 8)))
                labels = {**at, "boxes": boxes, "statistic": "speed-up"}
                rows.append(Row(labels, "ratio", {"value": 430 / time, "low": 425 / time, "high": 435 / time}))
            if change is not None:
                scenes: dict[str, Label] = {**at, "pictures": "scenes"}
                rows.append(Row({**scenes, "statistic": "heatmap difference"}, "ratio", {"value": change / 10}))
                if model == "resnet50":
                    values = {"median": change, "mean": change, "p99": 3 * change, "worst": 9 * change}
                    rows.append(Row({**scenes, "statistic": "landmark change"}, "px", values))
    return record("settings", rows)


def scaling() -> Record:
    """All axes."""
    at: dict[str, Label] = {"way": "edgepose", "model": "garment-landmarks"}
    rows: list[Row] = []
    for model, cost in (("garment-landmarks", 13.0), ("resnet50", 49.0)):
        for x in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64):
            parts = {"crop": 0.4 * x, "network": cost * x + 3, "decode": 0.1 * x + 0.2}
            parts["total"] = sum(parts.values()) + 0.1
            parts["a box"] = parts["total"] / x
            labels = {**at, "axis": "boxes", "x": x, "model": model}
            rows += [Row({**labels, "stage": stage}, "ms", times(time)) for stage, time in parts.items()]
    for x, frame in ((0.92, "1280x720"), (2.07, "1920x1080"), (3.69, "2560x1440"), (8.29, "3840x2160")):
        for sampling, cost in (("opencv4", 3.0), ("area", 3.6)):
            for boxes, grows in (("share of the frame", 0.2), ("constant px", 0.01)):
                labels = {**at, "axis": "frame", "x": x, "frame": frame, "sampling": sampling, "boxes_are": boxes}
                crop = cost + grows * x
                parts = {"total": crop + 105, "crop": crop, "network": 103.0, "decode": 1.0}
                rows += [Row({**labels, "stage": stage}, "ms", times(time)) for stage, time in parts.items()]
    for x in (8, 16, 25, 64, 133, 294):
        labels = {**at, "axis": "keypoints", "x": x, "maps": "network"}
        parts = {"total": 105 + 0.2 * x, "crop": 3.0, "network": 100 + 0.1 * x, "decode": 0.5 + 0.08 * x}
        rows += [Row({**labels, "stage": stage}, "ms", times(time)) for stage, time in parts.items()]
        rows.append(Row({**labels, "maps": "peaks", "stage": "decode"}, "ms", times(0.4 + 0.05 * x)))
    for model, size in (("garment-landmarks", 8.0), ("resnet50", 140.0)):
        steps = {"python": 10.0, "libraries imported": 110.0, "opened": 120 + 1.5 * size}
        steps |= {"after 1 call": 180 + 1.5 * size, "after 100 calls": 182 + 1.5 * size}
        labels = {**at, "model": model}
        rows += [_memory({**labels, "axis": "memory", "stage": stage}, mb) for stage, mb in steps.items()]
        more = {**labels, "stage": "resident"}
        rows += [_memory({**more, "axis": "predictors", "x": x}, 150 + 2 * size * x) for x in (1, 2, 3, 4)]
        rows += [_memory({**more, "axis": "memory of boxes", "x": x}, 170 + size + 6 * x) for x in (1, 4, 16, 64)]
    for model, x in (("garment-landmarks", 7.5), ("resnet50", 136.0), ("deepfashion2/trousers/hrnet_w48", 255.0)):
        for way, cost in (("edgepose", 1.2), ("onnxruntime", 1.0)):
            labels = {"axis": "load", "x": x, "model": model, "way": way, "stage": "open"}
            rows.append(Row(labels, "ms", times(30 + cost * x)))
    return record(
        "scaling", rows, ("boxes: beyond the batch of the session a call is cut into parts, one after another.",)
    )


def _memory(labels: dict[str, Label], resident: float) -> Row:
    return Row(labels, "MB", {"value": resident, "own": resident * 0.7, "peak": resident * 1.1})


def kernels() -> Record:
    """Two cases with two ways each, one thread and two."""
    rows = []
    for kernel, case in (("crop_warp", "opencv4, 8 crops"), ("decode_heatmaps", "dark_udp, 8x294 maps")):
        for way, cost in (("edgepose", 1.0), ("rtmlib", 2.5)):
            at: dict[str, Label] = {"kernel": kernel, "case": case, "way": way}
            for threads in (1, 2):
                rows.append(Row({**at, "threads": threads, "figure": "time"}, "ms", times(4 * cost / threads)))
                if way != "edgepose":
                    values = {"value": cost, "low": cost - 0.1, "high": cost + 0.1}
                    rows.append(Row({**at, "threads": threads, "figure": "ratio"}, "ratio", values))
            if way != "edgepose":
                values = {"mean": 0.01, "p99": 0.2, "worst": 1.0}
                rows.append(Row({**at, "figure": "difference"}, "levels", values))
    return record("kernels", rows)


ALL = {made.__name__: made for made in (latency, throughput, startup, settings, scaling, kernels)}
