"""Confidence intervals of the metrics, and whether two models differ, by the bootstrap over images.

The percentile method (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) on clusters: a resample
draws as many images as there are, with replacement, and takes all objects of a drawn image, since garments of one photo
share its light, camera and annotator (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
Each resample is averaged as the metric itself is: a landmark's fraction over the drawn objects that have it, then the
mean over the landmarks that were drawn at all.

The intervals say how much a figure would move with other photos of the same kind. They say nothing about another kind
of photo, another training run, or the labels' own errors. Below some 20 images they are too narrow; and a figure that
no object spoils (PCK 1.0) has an interval without width, because no resample can show what was never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.errors import InputError
from edgepose.training.metrics import Statistic

__all__ = ["CONFIDENCE", "RESAMPLES", "Difference", "Resampled", "compare", "interval", "resample"]

RESAMPLES = 1000
CONFIDENCE = 0.95
_DRAWS = 1 << 22  # numbers in one block of draws: 32 MiB


@dataclass(frozen=True, eq=False)
class Resampled:
    """One statistic over B resamples.

    Attributes:
        figures: (B,) float64; NaN where nothing was drawn that counts.
        by_keypoint: (B, K) float64; NaN where the landmark was not drawn.
    """

    figures: NDArray[np.float64]
    by_keypoint: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One statistic of a model, less that of another one, on the same images.

    Attributes:
        low, high: 95 % interval of the difference.
        p_value: two-sided: how often a resample's difference falls on the other side of 0, or on it, twice; at least
            2 / (resamples + 1). Not corrected for looking at several metrics.
    """

    low: float
    high: float
    p_value: float

    @property
    def beyond_chance(self) -> bool:
        """0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def resample(
    statistics: Sequence[Statistic],  # of the same N objects and K landmarks
    images: ArrayLike,  # (N,) which image each object is in: any numbers or names
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Resampled]:
    """Each statistic over ``resamples`` draws of the images. The same images and seed give the same draws.

    Raises InputError if ``images`` does not fit the statistics, or ``resamples`` is below 1.
    """
    shape = statistics[0].values.shape
    members, image = np.unique(np.asarray(images), return_inverse=True)
    if image.shape != shape[:1] or not len(members) or resamples < 1:
        raise InputError(
            f"expected one image for each of the {shape[0]} objects, at least one object and at least one resample, "
            f"got images of the shape {image.shape} and {resamples} resamples"
        )
    rng = np.random.default_rng(seed)
    sums = np.zeros((2, len(statistics), resamples, shape[1]))  # of values, and of counts
    block = max(1, min(resamples, _DRAWS // max(len(members), 1)))
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        times = _times_drawn(rng, len(members), stop - start)
        for k in range(shape[1]):
            columns = np.stack(
                [np.where(s.counts[:, k], s.values[:, k], 0) for s in statistics] + [s.counts[:, k] for s in statistics]
            ).astype(np.float64)
            rows = np.flatnonzero(columns[len(statistics) :].any(axis=0))
            with np.errstate(invalid="ignore"):  # a prediction that is not finite makes its landmark's sums NaN
                drawn = columns[:, rows] @ times[image[rows]]  # (2 * statistics, block)
            sums[:, :, start:stop, k] = drawn.reshape(2, len(statistics), -1)
    return [_averaged(s, *sums[:, i]) for i, s in enumerate(statistics)]


def interval(samples: NDArray[np.float64], images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile interval of a figure's resamples (B,), NaN left out; (NaN, NaN) for fewer than two images."""
    valid = samples[~np.isnan(samples)]
    if images < 2 or not len(valid):
        return float("nan"), float("nan")
    low, high = np.quantile(valid, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def compare(
    first: Sequence[Statistic],
    second: Sequence[Statistic],  # of another model on the same objects, in the same order
    images: ArrayLike,  # (N,)
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """The paired bootstrap of first - second: both are averaged over the same draws, so that what makes a photo hard
    for both cancels. By the statistic's name.

    Raises InputError if the two are not of the same objects and landmarks.
    """
    if [(s.name, s.values.shape) for s in first] != [(s.name, s.values.shape) for s in second] or any(
        not np.array_equal(a.counts, b.counts) for a, b in zip(first, second, strict=True)
    ):
        raise InputError("a paired comparison needs the same metrics on the same objects with the same labels")
    count = len(np.unique(np.asarray(images)))
    one, other = (resample(s, images, resamples=resamples, seed=seed) for s in (first, second))
    differences = {}
    for statistic, a, b in zip(first, one, other, strict=True):
        gain = a.figures - b.figures
        gain = gain[~np.isnan(gain)]
        tail = min((gain <= 0).sum(), (gain >= 0).sum())
        p_value = min(1.0, 2 * (float(tail) + 1) / (len(gain) + 1)) if count > 1 else float("nan")
        differences[statistic.name] = Difference(*interval(gain, count), p_value=p_value)
    return differences


def _times_drawn(rng: np.random.Generator, images: int, resamples: int) -> NDArray[np.float64]:
    """(images, resamples) how often each image is in each resample."""
    drawn = rng.integers(images, size=(resamples, images)) + images * np.arange(resamples)[:, None]
    times = np.bincount(drawn.ravel(), minlength=images * resamples)
    return np.ascontiguousarray(times.reshape(resamples, images).T, np.float64)


def _averaged(statistic: Statistic, values: NDArray[np.float64], counts: NDArray[np.float64]) -> Resampled:
    """From sums (B, K) of values and counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        by_keypoint = values / counts  # 0 / 0: not drawn
        if not statistic.macro:
            return Resampled(values.sum(axis=1) / counts.sum(axis=1), by_keypoint)
        drawn = counts > 0
        return Resampled(np.where(drawn, by_keypoint, 0).sum(axis=1) / drawn.sum(axis=1), by_keypoint)
