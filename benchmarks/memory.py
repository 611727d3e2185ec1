"""Memory of predictors, each series in a process of its own: what is resident after each step (Linux)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgepose.benchmarks.records import Label, Row
from edgepose.benchmarks.timing import fresh_process

__all__ = ["CALLS", "COUNTS", "PREDICTORS", "STATUS", "memory_rows", "series"]

STATUS = Path("/proc/self/status")
CALLS = 100
BOXES = 8
PREDICTORS = 4
COUNTS = (1, 2, 4, 8, 16, 32, 64)
FRAME = (1920, 1080)

# "resident" is VmRSS; "own" is what of it belongs to no file (code and mapped files can be shared, or read again)
_BEGIN = """\
import json, sys
task = json.loads(sys.argv[2])
def memory():
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith(("Vm", "Rss")))
    return [int(fields[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "RssAnon", "VmHWM")]
found = {"python": memory()}
import cv2, numpy, onnxruntime
from edgepose import Predictor
frame = numpy.full((task["height"], task["width"], 3), 120, numpy.uint8)
frame[::2, ::3] = 60
x = numpy.linspace(0, task["width"] - 200, 64)
boxes = numpy.stack([x, 0 * x + 300, x + 150, 0 * x + 600], 1)
found["libraries imported"] = memory()
opened = [Predictor(task["model"])]
found["opened"] = memory()
"""
_CALLS = """\
opened[0].predict(frame, boxes[: task["boxes"]])
found["after 1 call"] = memory()
for _ in range(task["calls"] - 1):
    opened[0].predict(frame, boxes[: task["boxes"]])
found["after %d calls" % task["calls"]] = memory()
"""
_PREDICTORS = """\
opened[0].predict(frame, boxes[: task["boxes"]])
for number in range(1, task["predictors"] + 1):
    if number > 1:
        opened.append(Predictor(task["model"]))
        opened[-1].predict(frame, boxes[: task["boxes"]])
    found[str(number)] = memory()
"""
_COUNTS = """\
for count in task["counts"]:
    for _ in range(3):  # a second run of a size takes new memory, by the pattern that the first one left
        opened[0].predict(frame, boxes[:count])
    found[str(count)] = memory()
"""
_END = "print(json.dumps(found))\n"


def series(code: str, model: Path, **task: Any) -> dict[str, list[float]]:
    """Run one of the series: (resident, own, peak) MB after each step."""
    facts = {"model": str(model), "width": FRAME[0], "height": FRAME[1], "boxes": BOXES, **task}
    program = _BEGIN + code + _END
    found: dict[str, list[float]] = fresh_process(program, runs=1, arguments=(json.dumps(facts),), timeout=600)[0]
    return found


def memory_rows(model: str, path: Path, *, calls: int = CALLS) -> list[Row]:
    """Three series of a model.

    Rows: axis ``memory`` by stage; ``predictors``, x of them open and used; ``memory of boxes``, after a call with x
    boxes, ascending in one predictor. Values: ``value`` resident, ``own`` without what belongs to files, ``peak``; MB.
    """
    rows = []
    for stage, values in series(_CALLS, path, calls=calls).items():
        rows.append(_row({"axis": "memory", "model": model, "stage": stage}, values))
    for axis, code in (("predictors", _PREDICTORS), ("memory of boxes", _COUNTS)):
        for x, values in series(code, path, predictors=PREDICTORS, counts=COUNTS).items():
            if x.isdigit():
                rows.append(_row({"axis": axis, "model": model, "x": int(x), "stage": "resident"}, values))
    return rows


def _row(labels: dict[str, Label], values: list[float]) -> Row:
    resident, own, peak = values
    return Row({**labels, "way": "edgepose"}, "MB", {"value": resident, "own": own, "peak": peak})
