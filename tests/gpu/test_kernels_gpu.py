"""Each kernel on the hardware against its twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgepose.geometry import crop_affines
from edgepose.kernels import reference
from edgepose.spec import IMAGENET_MEAN, IMAGENET_STD


def frame_of(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_affines(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """Rotated, mirrored, shrunk and enlarged ones, some of which look beyond the frame or miss it."""
    angle, scale = rng.uniform(-np.pi, np.pi, count), np.exp(rng.uniform(-4, 2, count))
    mirror = rng.choice([-1.0, 1.0], count)
    linear = scale[:, None, None] * np.stack(
        [np.cos(angle) * mirror, -np.sin(angle), np.sin(angle) * mirror, np.cos(angle)], 1
    ).reshape(-1, 2, 2)
    centre = rng.uniform(-200, 1500, (count, 2, 1))
    offset = np.array(size).reshape(2, 1) / 2 - linear @ centre
    return np.concatenate([linear, offset], 2)


@pytest.mark.parametrize("sampling", ["opencv4", "area", "linear"])
@pytest.mark.parametrize("size", [(192, 256), (191, 3), (1, 1), (288, 384)])
def test_crops_are_the_twins(sampling: str, size: tuple[int, int]) -> None:
    import cupy

    from edgepose.kernels.cuda import crop_warp

    rng = np.random.default_rng(0)
    frame = frame_of(rng, 1283, 721)
    affines = np.concatenate(
        [random_affines(rng, 40, size), crop_affines([[100, 50, 400, 500], [-300, 0, 2000, 900]], (192, 256))]
    )
    expected = reference.crop_warp(frame, affines, size, sampling=sampling)
    crops = crop_warp(cupy.asarray(frame), affines, size, sampling=sampling).get()
    if sampling == "linear":  # coordinates are rounded to 2^-32 px; a level may fall on the other side of a half
        assert np.abs(crops.astype(int) - expected).max() <= 1
        assert (crops != expected).mean() < 1e-4
    else:
        np.testing.assert_array_equal(crops, expected)
    expected = reference.crop_warp(frame, affines, size, sampling=sampling, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    crops = crop_warp(cupy.asarray(frame), affines, size, sampling=sampling, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    # 2.2 is the largest normalised level; linear: 2^-32 px times 255 levels.
    np.testing.assert_allclose(crops.get(), expected, atol=1e-5 if sampling == "linear" else 0, rtol=0)
    half = cupy.zeros(expected.shape, np.float16)
    crop_warp(cupy.asarray(frame), affines, size, sampling=sampling, mean=IMAGENET_MEAN, std=IMAGENET_STD, out=half)
    limit = 2e-3 if sampling == "linear" else 0  # one unit of float16's last place at 2
    np.testing.assert_allclose(half.get(), expected.astype(np.float16), atol=limit, rtol=0)


def peaks(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    h, w = shape[2:]
    cx, cy = rng.uniform(-1, w, (*shape[:2], 1)), rng.uniform(-1, h, (*shape[:2], 1))
    gx, gy = np.exp(-((np.arange(w) - cx) ** 2) / 8), np.exp(-((np.arange(h) - cy) ** 2) / 8)
    maps = gy[..., :, None] * gx[..., None, :] * rng.uniform(0.1, 1, (*shape[:2], 1, 1))
    return (maps + rng.normal(0, 0.003, shape)).astype(np.float32)


def adversarial(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ties, constants, NaN, infinities, nothing above 0, peaks in corners, tiny and huge values; one kind a channel."""
    maps = rng.integers(0, 3, shape).astype(np.float32)  # ties everywhere
    kinds: list[Callable[[np.ndarray], Any]] = [
        lambda m: m.fill(0), lambda m: m.fill(-1), lambda m: m.fill(0.5), lambda m: m.fill(np.nan),
        lambda m: m[:, -1, -1].fill(9), lambda m: m[:, 0, 0].fill(9), lambda m: m[:, 0, -1].fill(np.inf),
        lambda m: m[:, 0, 0].fill(np.nan), lambda m: np.multiply(m, 1e-6, out=m), lambda m: np.multiply(m, 1e4, out=m),
    ]  # fmt: skip
    for channel, change in enumerate(kinds):
        change(maps[:, channel])
    return maps


@pytest.mark.parametrize("refinement", ["none", "shift", "dark", "dark_udp"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [(64, 48), (96, 72), (63, 47), (7, 5), (128, 128)])
def test_peaks_are_the_twins(refinement: str, dtype: Any, size: tuple[int, int]) -> None:
    import cupy

    from edgepose.kernels.cuda import decode_heatmaps

    rng = np.random.default_rng(0)
    shape = (5, 30, *size)
    for maps in (peaks(rng, shape).astype(dtype), adversarial(rng, shape).astype(dtype)):
        expected, expected_scores = reference.decode_heatmaps(maps, refinement=refinement)
        locations, scores = decode_heatmaps(cupy.asarray(maps), refinement=refinement)
        np.testing.assert_array_equal(scores.get(), expected_scores)  # the first maximum, exactly
        if refinement in ("none", "shift"):
            np.testing.assert_array_equal(locations.get(), expected)
            continue
        assert np.isfinite(locations.get()).all()
        # Cells; noise is included, where a step may leave the map. Worst seen on the CPU: 1.1e-4.
        np.testing.assert_allclose(locations.get(), expected, atol=2.5e-4, rtol=1e-6)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_flip_test_and_channel_ranges(shift: bool, dtype: Any) -> None:
    import cupy

    from edgepose.kernels.cuda import decode_heatmaps

    rng = np.random.default_rng(0)
    maps, flipped = (peaks(rng, (6, 294, 64, 48)).astype(dtype) for _ in range(2))
    options: dict[str, Any] = {
        "flip_indices": rng.permutation(294),
        "flip_shift": shift,
        "channel_ranges": np.sort(rng.integers(0, 295, (6, 2)), axis=1),
        "cells_to_frame": rng.normal(0, 5, (6, 2, 3)),
        "refinement": "shift",
    }
    expected, expected_scores = reference.decode_heatmaps(maps, flipped=flipped, **options)
    locations, scores = decode_heatmaps(cupy.asarray(maps), flipped=cupy.asarray(flipped), **options)
    np.testing.assert_array_equal(scores.get(), expected_scores)
    np.testing.assert_allclose(locations.get(), expected, atol=1e-4)  # float64, rounded once: px of a frame
