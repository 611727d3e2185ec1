"""What the launchers ask of arrays in GPU memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._call import call_size

__all__ = ["check_array", "check_call", "check_device", "check_table"]


def check_array(
    cupy: Any, array: Any, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None
) -> None:
    """Raise TypeError unless it is a CuPy array of one of the dtypes, ValueError unless C-contiguous and on the device.

    ``shape``: the one that it must have; None: any.
    """
    if not isinstance(array, cupy.ndarray) or array.dtype.name not in dtypes:
        kind = array.dtype if isinstance(array, (cupy.ndarray, np.ndarray)) else type(array).__name__
        where = " of the host" if isinstance(array, np.ndarray) else ""
        raise TypeError(f"{name} must be a CuPy array of {' or '.join(dtypes)}, got {kind}{where}")
    if not array.flags.c_contiguous or (shape is not None and array.shape != shape):
        wanted = "" if shape is None else f" of shape {shape}"
        raise ValueError(f"{name} must be a C-contiguous array{wanted}, got shape {array.shape}")
    check_device(cupy, array, name)


def check_call(cupy: Any, call: Any, crops: int) -> None:
    """Raise TypeError or ValueError unless ``call`` can be the record of a call (_call.py) for so many crops."""
    check_table(cupy, call, "call", call_size(crops), f"{crops} crops")


def check_table(cupy: Any, table: Any, name: str, size: int, holds: str) -> None:
    """Raise TypeError or ValueError unless it is uint8 in one dimension, at least ``size`` bytes and aligned to 8."""
    check_array(cupy, table, name, ("uint8",))
    if table.ndim != 1 or table.nbytes < size or table.data.ptr % 8:
        raise ValueError(
            f"{name} must hold {size} bytes for {holds} in one dimension, aligned to 8 (its address a multiple of 8), "
            f"got the shape {table.shape} at {table.data.ptr:#x}"
        )


def check_device(cupy: Any, array: Any, name: str) -> None:
    """Raise ValueError unless the array lies on CuPy's current device."""
    current = cupy.cuda.Device()
    if array.device != current:
        raise ValueError(f"{name} lies on GPU {array.device.id}, and CuPy's current device is GPU {current.id}")
