"""Smoother: the One-Euro filter on the landmarks of each tracked object.

Casiez, Roussel, Vogel: "1€ Filter: A Simple Speed-based Low-pass Filter for Noisy Input in Interactive Systems", CHI
2012. A first-order low-pass whose cutoff rises with the landmark's speed: what rests is smoothed much, what moves is
followed at once. With step T, signal x, and hats for what is filtered::

    v     = (x - x_hat_before) / T / size          speed in object sizes per second
    v_hat = low-pass of v at d_cutoff
    x_hat = low-pass of x at min_cutoff + beta * |v_hat|
    low-pass at f: y += (x - y) / (1 + 1 / (2 pi f T))

Two things are fixed here that the paper leaves open. The *size* is the root of the area of the object's box, so that
one setting serves near and far objects and any resolution: a beta in px would smooth a small figure more than a large
one. |v_hat| is the length of the velocity's vector, so that x and y of a landmark share one cutoff: no path is bent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.arguments import check_number
from edgepose.association import box_size
from edgepose.errors import InputError
from edgepose.result import PoseResult
from edgepose.trackstate import check_time

__all__ = ["OneEuro", "Smoother"]


@dataclass(frozen=True)
class OneEuro:
    """The parameters of the filter. ``edgepose bench tracking`` measures what the defaults do.

    Attributes:
        min_cutoff: Hz. The cutoff at rest: lower, and a still object trembles less, but starts to move later.
        beta: Hz per (object size / s). How fast the cutoff rises with speed: higher, and a moving object lags less, but
            trembles more.
        d_cutoff: Hz. The cutoff of the speed itself: higher, and a start is noticed sooner, but so is noise.
        min_score: a landmark with a score below (0 to 1) is passed on as it is, and its filter forgets it: when it
            is back, it starts at the place where it is.
        max_gap: s. After a longer pause, or when the time does not go on, filters start anew; those of objects that
            are not seen for so long are forgotten.

    Raises:
        InputError: a value is out of its range.
    """

    min_cutoff: float = 0.3
    beta: float = 25.0
    d_cutoff: float = 1.0
    min_score: float = 0.3
    max_gap: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = check_number(
                f"OneEuro.{field.name}",
                getattr(self, field.name),
                most=1 if field.name == "min_score" else math.inf,
                above=field.name in ("min_cutoff", "d_cutoff", "max_gap"),
            )
            object.__setattr__(self, field.name, value)


@dataclass
class _Filter:
    """The state of one object's K landmarks.

    Attributes:
        points: (K, 2) float64, what was returned last, frame px; only where ``known``.
        velocity: (K, 2) float64, smoothed, object sizes per second.
        known: (K,) the landmarks that have a past.
        time: s, of the last frame.
    """

    points: NDArray[np.float64]
    velocity: NDArray[np.float64]
    known: NDArray[np.bool_]
    time: float


class Smoother:
    """Smooths the landmarks of tracked objects, each id and each landmark by itself. One smoother for each source.

    Only the landmarks change; boxes, scores and ids are passed on. Not for several threads at once.

    Args:
        parameters: see :class:`OneEuro`; None: its defaults.
    """

    def __init__(self, parameters: OneEuro | None = None) -> None:
        if parameters is not None and not isinstance(parameters, OneEuro):
            raise InputError(f"parameters must be a OneEuro, for instance OneEuro(beta=30), got {parameters!r}")
        self._parameters = parameters or OneEuro()
        self._filters: dict[int, _Filter] = {}

    @property
    def parameters(self) -> OneEuro:
        """How it smooths."""
        return self._parameters

    def reset(self) -> None:
        """Forget all objects: the next result is returned as it is."""
        self._filters.clear()

    def smooth(self, result: PoseResult, time: float) -> PoseResult:
        """The result with smoothed landmarks.

        The first sample of an object, and of a landmark that was not visible before, is returned exactly.

        Args:
            result: with ``track_ids``, as :meth:`edgepose.track.Tracker.update` returns it.
            time: when the frame was taken, s, on the tracker's clock; the frame rate may vary.

        Raises:
            InputError: the result has no ``track_ids``, one of them twice, or the time is not finite.
        """
        seconds = check_time(time)
        if result.track_ids is None:
            raise InputError("smoothing needs to know which object is which: pass the result of Tracker.update")
        numbers = [int(number) for number in result.track_ids]
        if len(set(numbers)) != len(numbers):
            raise InputError(f"smoothing expects each track id once, got {numbers}")
        gap = self._parameters.max_gap
        self._filters = {n: f for n, f in self._filters.items() if abs(seconds - f.time) <= gap}
        if not numbers:
            return result
        points = result.keypoints.astype(np.float64)
        visible = (result.scores >= self._parameters.min_score) & (result.scores > 0) & np.isfinite(points).all(axis=-1)
        sizes = box_size(result.boxes.astype(np.float64))
        for row, number in enumerate(numbers):
            before = self._filters.get(number)
            if before is not None and seconds <= before.time:  # the time stands still or went back: no speed to tell
                before = None
            state = self._step(before, points[row], visible[row], float(sizes[row]), seconds)
            self._filters[number] = state
            points[row] = np.where(state.known[:, None], state.points, points[row])
        return replace(result, keypoints=points.astype(np.float32))

    def _step(self, before: _Filter | None, points: NDArray[np.float64], visible: NDArray[np.bool_], size: float,
              time: float) -> _Filter:  # fmt: skip
        """One step of the filter for an object's K landmarks."""
        if before is None:
            return _Filter(points.copy(), np.zeros_like(points), visible.copy(), time)
        step = time - before.time
        going = before.known & visible  # (K,) the landmarks with a past; the others start here
        old = np.where(going[:, None], before.points, 0.0)
        new = np.where(going[:, None], points, 0.0)
        speed = (new - old) / (step * size)
        velocity = before.velocity + _weight(self._parameters.d_cutoff, step) * (speed - before.velocity)
        cutoff = self._parameters.min_cutoff + self._parameters.beta * np.hypot(velocity[:, 0], velocity[:, 1])
        smooth = old + _weight(cutoff, step)[:, None] * (new - old)
        return _Filter(
            np.where(going[:, None], smooth, points),
            np.where(going[:, None], velocity, 0.0),
            visible.copy(),
            time,
        )


def _weight(cutoff: Any, step: float) -> Any:
    """The weight of a new sample in a first-order low-pass; cutoff in Hz, step in s."""
    turn = 2 * np.pi * cutoff * step
    return turn / (1 + turn)
