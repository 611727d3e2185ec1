"""What tables and plots read out of a record of `edgepose bench latency`, of the CPU or of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgepose.benchmarks.records import Record, Row
from edgepose.benchmarks.scenes import FRAMES
from edgepose.benchmarks.ways import OURS, key_of

__all__ = [
    "Place",
    "all_but_network",
    "frame_name",
    "landmark_change",
    "lead",
    "main_place",
    "pixels",
    "places",
    "stages",
    "timed",
    "way_of",
]

TOTAL = "total"
MAIN_FRAME, MAIN_BOXES = "1920x1080", 8


class Place(NamedTuple):
    """Where ways are compared: a model, a frame (``1920x1080``), a number of boxes."""

    model: str
    frame: str
    boxes: int


def places(record: Record) -> list[Place]:
    """All that were timed: models in the record's order, small frames before large ones, few boxes before many."""
    found = dict.fromkeys(_place(row) for row in _totals(record))
    models = list(dict.fromkeys(place.model for place in found))
    return sorted(found, key=lambda place: (models.index(place.model), pixels(place.frame), place.boxes))


def main_place(record: Record, model: str) -> Place | None:
    """8 boxes on 1080p, from which ratios are quoted; else what comes closest. None: the model was not timed."""
    of_model = [place for place in places(record) if place.model == model]
    return min(of_model, key=lambda place: (place.frame != MAIN_FRAME, abs(place.boxes - MAIN_BOXES)), default=None)


def timed(record: Record, place: Place) -> list[Row]:
    """End to end of each way, fastest first."""
    return sorted((row for row in _totals(record) if _place(row) == place), key=lambda row: row.values["p50"])


def way_of(row: Row) -> str:
    """Name and precision: ``rtmlib``, ``rtmlib int8``; a way with other landmarks than the model's says so."""
    key = key_of(str(row.labels["way"]), str(row.labels["precision"]))
    return f"{key} (other landmarks)" if "unequal" in row.labels else key


def stages(record: Record, row: Row) -> dict[str, float]:
    """Medians of a way's stages, ms; empty where it tells none. ``rest`` is what of the total they leave.

    On the CPU the rest was recorded, run by run. On a GPU it is what the medians leave of the total's; stages of the
    device's clock can exceed the total of the host's: then they are no parts of it, and none come back.
    """
    own = {key: value for key, value in row.labels.items() if key != "stage"}
    parts = {
        str(found.labels["stage"]): found.values["p50"]
        for found in record.find(**own)
        if found.unit == "ms" and "against" not in found.labels and found.labels.get("stage") != TOTAL
    }
    if "rest" in parts:
        return parts
    rest = row.values["p50"] - sum(parts.values())
    return {**parts, "rest": rest} if parts and rest >= 0 else {}


def all_but_network(record: Record, row: Row) -> float | None:
    """What of a way's total is not the network's, %, stages as :func:`stages` has them. None: it tells none."""
    own = {key: value for key, value in row.labels.items() if key != "stage"}
    if record.find(**own, stage="rest"):  # of the CPU: each run's own share was recorded
        return record.value("value", **own, stage="all but the network")
    parts = stages(record, row)
    return 100 * (1 - parts["network"] / row.values["p50"]) if "network" in parts else None


def lead(record: Record, row: Row, precision: str = "fp32") -> Mapping[str, float] | None:
    """How many times as fast as this way ours at ``precision`` is: value, low, high. None: the two were not compared.

    On the CPU the row of the ratio is ours and names the other in ``against``. On a GPU it is the other's, with the
    stage ``ratio``, and ours has one precision, whatever is asked for.
    """
    place = _place(row)._asdict()
    way, own = str(row.labels["way"]), str(row.labels["precision"])
    found = record.find(**place, way=OURS, precision=precision, against=key_of(way, own))
    found = found or record.find(**place, way=way, precision=own, stage="ratio")
    return found[0].values if found else None


def landmark_change(record: Record, row: Row) -> Row | None:
    """How far a way's landmarks are from the reference's, px of the crop; None: the reference, or not judged."""
    own = {key: row.labels[key] for key in ("model", "way", "precision")}
    found = record.find(**own, statistic="landmark change") or record.find(**own, stage="landmark change")
    same_frame = [one for one in found if one.labels["frame"] == row.labels["frame"]]
    return next(iter(same_frame or found), None)


def pixels(frame: str) -> int:
    """``1920x1080`` -> 2073600."""
    width, _, height = frame.partition("x")
    return int(width) * int(height)


def frame_name(frame: str) -> str:
    """``1920x1080`` -> ``1080p``; other sizes stay."""
    return next((name for name, (width, height) in FRAMES.items() if f"{width}x{height}" == frame), frame)


def _totals(record: Record) -> list[Row]:
    return [row for row in record.find(stage=TOTAL) if row.unit == "ms"]


def _place(row: Row) -> Place:
    return Place(str(row.labels["model"]), str(row.labels["frame"]), int(row.labels["boxes"]))
