"""Checks of options that callers pass: each returns the value in its plain form, or raises InputError."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgepose.errors import InputError

__all__ = ["check_choice", "check_number", "check_whole"]


def check_whole(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """A whole number, NumPy's too; true and false are none."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} must be a whole number {span}, got {value!r}")
    return number


def check_number(name: str, value: Any, *, least: float = 0.0, most: float = math.inf, above: bool = False) -> float:
    """A finite number from ``least`` to ``most``; ``above``: more than ``least``."""
    usable = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not usable or not math.isfinite(value) or not least <= value <= most or (above and value == least):
        begin = f"above {least:g}" if above else f"from {least:g}" if most < math.inf else f"of at least {least:g}"
        end = "" if most == math.inf else f", at most {most:g}" if above else f" to {most:g}"
        raise InputError(f"{name} must be a number {begin}{end}, got {value!r}")
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some texts."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value
