"""What a check of a data set found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["CheckReport", "Finding", "Level"]

Level = Literal["error", "warning"]


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        level: error or warning.
        kind: a few words by which findings are counted.
        file: the annotation file.
        record: ``annotation 17``, ``image 5``, ``category 2``.
        image: the image's name in the file; may be empty.
        message: what is wrong, and what to do.
    """

    level: Level
    kind: str
    file: Path
    record: str
    image: str
    message: str

    def __str__(self) -> str:
        image = f" ({self.image})" if self.image else ""
        return f"{self.level}: {self.file}: {self.record}{image}: {self.message}"


@dataclass
class CheckReport:
    """What was found, and what the data set holds.

    Attributes:
        path: the annotation file.
        findings: in the order in which they were found; of each kind at most as many as were asked for.
        counts: (level, kind) -> how many there are.
        images: entries of images.
        objects: category -> objects.
        landmarks: category -> landmark -> fraction of its objects where it is labelled.
        box_sides: category -> (smallest, median, largest) longer side of the boxes, px.
        limit: how many findings of each kind are kept.
    """

    path: Path
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[Level, str]] = field(default_factory=Counter)
    images: int = 0
    objects: dict[str, int] = field(default_factory=dict)
    landmarks: dict[str, dict[str, float]] = field(default_factory=dict)
    box_sides: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    limit: int = 20

    def add(self, level: Level, kind: str, record: str, image: str, message: str) -> None:
        """Count a finding, and keep it if there are not too many of its kind; ``limit`` 0 keeps all."""
        self.counts[level, kind] += 1
        if not self.limit or self.counts[level, kind] <= self.limit:
            self.findings.append(Finding(level, kind, self.path, record, image, message))

    @property
    def errors(self) -> int:
        """How many errors there are."""
        return sum(count for (level, _), count in self.counts.items() if level == "error")

    @property
    def warnings(self) -> int:
        """How many warnings there are."""
        return sum(count for (level, _), count in self.counts.items() if level == "warning")
