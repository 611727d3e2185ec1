"""Synthetic garments with exact landmarks, to train on and to demonstrate with. Needs NumPy and OpenCV only.

sample = render_garment(np.random.default_rng(0), (300, 400))
sample.image, sample.keypoints, sample.visible, sample.box
"""

from __future__ import annotations

from .moving import MovingGarment
from .outlines import Outline, load_outlines
from .render import GarmentSample, render_garment
from .templates import GARMENT_TYPES

__all__ = ["GARMENT_TYPES", "GarmentSample", "MovingGarment", "Outline", "load_outlines", "render_garment"]
