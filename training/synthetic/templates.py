"""Parametric garments: outlines, seams and exact landmarks in garment units.

Frame: x to the image's right, y down; the origin is midway between the two collar (or waistline) landmarks and the hem
lies near y = 1. Proportions come from measuring real garments; ranges are wider than what was measured.

Where a landmark sits (as in hand-labelled photos): collar where the neckline meets the shoulder, below any collar or
hood; sleeve at the middle of the cuff's edge, of the armhole (vests) or at the bodice's upper corner (slings);
waistline at the side seam; hem at the side seam's foot, for trousers and shorts at the middle of each leg's end.
"""

from __future__ import annotations

import numpy as np

from edgepose.errors import InputError

from .lower import legs, skirt
from .shapes import CATEGORY_OF, GARMENT_TYPES, Line, Part, Template
from .upper import sling, upper

__all__ = ["CATEGORY_OF", "GARMENT_TYPES", "Line", "Part", "Template", "sample_template"]

_WEIGHTS = {
    "short_sleeved_shirt": 14,
    "long_sleeved_shirt": 15,
    "short_sleeved_outwear": 2,
    "long_sleeved_outwear": 11,
    "vest": 5,
    "sling": 2,
    "shorts": 10,
    "trousers": 12,
    "skirt": 10,
    "short_sleeved_dress": 9,
    "long_sleeved_dress": 9,
    "vest_dress": 9,
    "sling_dress": 4,
}


def sample_template(rng: np.random.Generator, garment_type: str | None = None) -> Template:
    """A random garment of ``garment_type``, or of a random type.

    Raises:
        InputError: an unknown garment type.
    """
    if garment_type is None:
        weights = np.array([_WEIGHTS[name] for name in GARMENT_TYPES], float)
        garment_type = str(rng.choice(GARMENT_TYPES, p=weights / weights.sum()))
    if garment_type not in CATEGORY_OF:
        raise InputError(f"garment_type must be one of {', '.join(GARMENT_TYPES)}, got {garment_type!r}")
    if garment_type in ("trousers", "shorts"):
        return legs(rng, garment_type)
    if garment_type == "skirt":
        return skirt(rng)
    if garment_type in ("sling", "sling_dress"):
        return sling(rng, garment_type)
    return upper(rng, garment_type)
