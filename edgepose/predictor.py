"""Predictor: the one entry class. A frame and its boxes in, landmarks out."""

from __future__ import annotations

import operator
import threading
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose import geometry
from edgepose.engines import Engine, open_engine
from edgepose.errors import EngineError, InputError
from edgepose.frames import as_bgr
from edgepose.kernels import reference
from edgepose.models import find_model
from edgepose.result import PoseResult, Timings
from edgepose.spec import ModelSpec, Refinement

__all__ = ["Predictor"]


class Predictor:
    """Finds the landmarks of each box in a frame.

    A predictor may be shared between threads: calls of ``predict`` take turns, because they share one input buffer.
    For calls that run at the same time, open one predictor for each thread.

    Args:
        model: the name of a bundled model (``edgepose.bundled_models()``) or the path of an ONNX file.
        spec: what the model expects, or the path of a JSON file that says so; used in place of the spec in the model's
            metadata. None: the model's own.
        device: ``cpu`` or ``auto``, the fastest engine of this version that runs here (in this version: the CPU).
        flip_test: run each crop mirrored too and average: about twice the network time for some accuracy.
        refinement: another sub-pixel step than the spec's: ``none``, ``shift``, ``dark`` or ``dark_udp``.
        max_batch: the largest number of crops in one run of the network; more boxes are done in several runs.
        threads: CPU threads of the network; None: as many as this process may use.

    Raises:
        InputError: an option is not usable.
        ModelError: there is no such model, it does not load, it has no spec, or it contradicts its spec.
        EngineError: this version has no engine for the device or the file.
        MissingDependencyError: the engine's runtime is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        spec: ModelSpec | str | Path | None = None,
        device: str = "auto",
        flip_test: bool = False,
        refinement: Refinement | None = None,
        max_batch: int = 16,
        threads: int | None = None,
    ) -> None:
        max_batch = _positive("max_batch", max_batch)
        threads = None if threads is None else _positive("threads", threads)
        if spec is not None and not isinstance(spec, ModelSpec):
            spec = ModelSpec.from_file(spec)
        path = find_model(model)
        self._engine: Engine | None = open_engine(path, spec=spec, device=device, max_batch=max_batch, threads=threads)
        try:
            own = self._engine.spec
            self._spec = replace(own, refinement=refinement) if refinement is not None else own
        except Exception:
            self._engine.close()
            raise
        self._flip_test = flip_test
        self._lock = threading.Lock()

    @property
    def spec(self) -> ModelSpec:
        """What the model expects and returns; ``refinement`` is the one in use."""
        return self._spec

    @property
    def engine_name(self) -> str:
        """The runtime and where it runs, for instance ``onnxruntime (cpu)``."""
        engine = self._open_engine()
        return f"{engine.name} ({engine.device})"

    def predict(self, frame: NDArray[np.uint8], boxes: ArrayLike | None = None) -> PoseResult:
        """Landmarks of each box.

        Args:
            frame: (H, W, 3) uint8 BGR; (H, W, 4) is read as BGRA, alpha dropped; (H, W) and (H, W, 1) as grey. Any
                strides; never changed. See :mod:`edgepose.frames`.
            boxes: (N, 4) xyxy, frame px, an integer is a pixel's centre; N may be 0. A box may reach over the frame's
                border or lie outside: what is not in the frame is black to the network. Where a padded box touches
                no pixel of the frame at all, the scores are 0 and the keypoints say nothing.

        Returns:
            The result, in the order of the boxes; its arrays are the caller's. Keypoints are not clipped to the frame.

        Raises:
            InputError: an unusable frame; no boxes (None); boxes of another shape, not finite, inverted or with no
                area.
            EngineError: the predictor is closed, or the runtime failed.
        """
        start = perf_counter()
        image = as_bgr(frame)
        if boxes is None:
            raise InputError(
                "no boxes and no detector: pass boxes, (N, 4) xyxy px, or whole_image_box(frame) "
                "(from edgepose import whole_image_box) if one garment fills the picture"
            )
        checked = geometry.validate_boxes(boxes)
        size = (image.shape[1], image.shape[0])
        with self._lock:
            engine = self._open_engine()
            clock = _Clock()
            step = len(engine.input_buffer)
            parts = [
                self._predict_chunk(engine, image, checked[first : first + step], clock)
                for first in range(0, len(checked), step)
            ]
        if not parts:
            return PoseResult.empty(self._spec, size)
        keypoints, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        timings = Timings(clock.crop, clock.network, clock.decode, (perf_counter() - start) * 1e3)
        return PoseResult(keypoints, scores, checked, self._spec, size, timings)

    def close(self) -> None:
        """Free the network; ``predict`` raises EngineError from now on. Closing twice is fine."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def __enter__(self) -> Predictor:
        self._open_engine()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{self._engine.name}, {self._engine.device}" if self._engine else "closed"
        return f"<Predictor {self._spec.name!r} ({state})>"

    # One chunk ------------------------------------------------------------------------------------

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError(f"the predictor of {self._spec.name!r} is closed: open a new Predictor")
        return self._engine

    def _predict_chunk(
        self, engine: Engine, image: NDArray[np.uint8], boxes: NDArray[np.float32], clock: _Clock
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keypoints (n, K, 2), frame px, and scores (n, K) of n <= max_batch boxes."""
        spec = self._spec
        clock.lap()
        affines = geometry.crop_affines(boxes, spec.input_size, codec=spec.codec, padding=spec.padding)
        images = engine.input_buffer[: len(boxes)]
        reference.crop_warp(
            image, affines, spec.input_size, sampling=spec.sampling, mean=spec.mean, std=spec.std, out=images
        )
        clock.crop += clock.lap()
        heatmaps = self._run(engine, images)
        clock.network += clock.lap()
        locations, scores = reference.decode_heatmaps(
            heatmaps, refinement=spec.refinement, blur_kernel=spec.blur_kernel
        )
        points = geometry.heatmap_to_crop(locations, spec.codec, spec.input_size, spec.heatmap_size)
        inverses = geometry.invert_affines(affines)
        keypoints = geometry.transform_points(points, inverses).astype(np.float32)
        scores = np.where(_sees_frame(inverses, spec.input_size, image.shape)[:, None], scores, np.float32(0))
        clock.decode += clock.lap()
        return keypoints, scores

    def _run(self, engine: Engine, images: NDArray[Any]) -> NDArray[np.float32]:
        heatmaps = engine.run(images)
        if not self._flip_test:
            return heatmaps
        mirrored = engine.run(np.ascontiguousarray(images[..., ::-1]))
        return reference.merge_flipped(heatmaps, mirrored, self._spec.flip_indices, shift=self._spec.flip_shift)


def _positive(name: str, value: Any) -> int:
    try:
        number = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")
    return number


class _Clock:
    """Stage times of one call, ms."""

    def __init__(self) -> None:
        self.crop = self.network = self.decode = 0.0
        self._last = perf_counter()

    def lap(self) -> float:
        """ms since the last lap."""
        last, self._last = self._last, perf_counter()
        return (self._last - last) * 1e3


def _sees_frame(
    inverses: NDArray[np.float64], input_size: tuple[int, int], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """(n,) whether a crop overlaps the frame; crops are not rotated, so two corners tell."""
    w, h = input_size
    corners = np.broadcast_to(np.array([[-0.5, -0.5], [w - 0.5, h - 0.5]]), (len(inverses), 2, 2))
    low, high = geometry.transform_points(corners, inverses).swapaxes(0, 1)
    end = np.array([shape[1], shape[0]]) - 0.5
    return np.asarray(((high > -0.5) & (low < end)).all(axis=1))
