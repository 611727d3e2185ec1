"""A garment that moves: frames with known landmarks for demonstrations and for tests of trackers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edgepose.errors import InputError

from .clutter import photograph
from .floors import background
from .folds import fold_map
from .render import GarmentSample, draw_scene, sample_scene, truth
from .shapes import polygons
from .templates import sample_template
from .warp import Warp, fit_homography, sample_waves

__all__ = ["MovingGarment"]

_SHOWN = (
    "short_sleeved_shirt",
    "long_sleeved_shirt",
    "long_sleeved_outwear",
    "short_sleeved_dress",
    "vest_dress",
    "trousers",
)


class MovingGarment:
    """An iterable of ``frames`` samples of one garment that sways, drifts, turns and comes closer over a fixed floor.

    Args:
        seed: fixes the garment, the scene and the motion.
        size: (w, h) px.
        frames: length of the clip; the motion closes into a loop.
        garment_type: one of ``GARMENT_TYPES``; a random common one by default.

    Raises:
        InputError: no frames, or a size below 32 px.
    """

    def __init__(
        self, seed: int = 0, size: tuple[int, int] = (960, 720), frames: int = 120, garment_type: str | None = None
    ) -> None:
        if frames < 1 or min(size) < 32:
            raise InputError(f"expected at least 1 frame of at least 32 px, got {frames} frames of {size!r}")
        self.seed, self.size, self.frames = seed, size, frames
        rng = np.random.default_rng([seed, 2])
        template = sample_template(rng, garment_type or str(rng.choice(_SHOWN)))
        scene, _ = sample_scene(rng, size, template=template)
        amplitudes, waves, phases = sample_waves(rng, 0.6)
        width, height = size
        box = (width * 0.16, height * 0.1, width * 0.84, height * 0.9)
        flat = Warp(amplitudes, waves, phases, np.eye(3))
        homography = fit_homography(flat(np.concatenate(polygons(template))), box, 0.0, (0.0, 0.05), 1.0)
        self._warp = replace(flat, homography=homography)
        floor = background(rng, size, kind=str(rng.choice(["wood", "wood", "sheet", "wall"])))
        self._scene = replace(
            scene,
            background=photograph(np.random.default_rng([seed, 3]), floor, quality=1.0),
            pixels_per_unit=self._warp.pixels_per_unit,
            folds=fold_map(rng, int(np.clip(self._warp.pixels_per_unit, 256, 900)), strength=0.45),
            hanger=None,
        )
        self._phase = rng.uniform(0, 2 * np.pi, 6)

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[GarmentSample]:
        for index in range(self.frames):
            yield self.frame(index)

    def frame(self, index: int) -> GarmentSample:
        """The sample at ``index``, which may run beyond the clip: the motion repeats."""
        warp = self._warp_at(2 * np.pi * (index % self.frames) / self.frames)
        image, silhouette = draw_scene(self._scene, warp)
        return truth(self._scene, warp, image, silhouette)

    def _warp_at(self, t: float) -> Warp:
        w, h = self.size
        a, b, c, d, e, f = self._phase
        turn, scale = 0.12 * np.sin(t + a), 0.92 + 0.08 * np.sin(t + b)
        shift = np.array([0.06 * w * np.sin(t + c), 0.03 * h * np.sin(2 * t + d)])
        cos, sin = np.cos(turn) * scale, np.sin(turn) * scale
        middle = np.array([w, h]) / 2
        offset = middle + shift - np.array([[cos, -sin], [sin, cos]]) @ middle
        move = np.array([[cos, -sin, offset[0]], [sin, cos, offset[1]], [0, 0, 1]])
        order = np.arange(len(self._warp.phases))
        sway = 1.1 * np.sin(t + order + e) + 0.3 * np.sin(2 * t + 2 * order + f)
        return replace(self._warp, phases=self._warp.phases + sway, homography=move @ self._warp.homography)
