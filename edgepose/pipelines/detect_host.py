"""Detection in host memory: NumPy twins around an engine of host arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.frames import as_bgr
from edgepose.kernels import reference
from edgepose.pipelines.detection import DetectionSettings, Found, check_scores, kept_labels

if TYPE_CHECKING:
    from edgepose.detector_spec import DetectorSpec
    from edgepose.engines import Engine

__all__ = ["HostDetection"]


class HostDetection:
    """The objects in frames: letterbox, network, selection. See :class:`edgepose.pipelines.DetectionPipeline`.

    Args:
        engine: a detector in the canonical form: (N, 3, h, w) float32 -> rows (N, Q, 6) float32 (x1, y1, x2, y2 in px
            of the network's input, score, label). Closed by :meth:`close`.
        spec: the engine's.
        settings: which rows count.
    """

    def __init__(self, engine: Engine, spec: DetectorSpec, settings: DetectionSettings) -> None:
        self._engine = engine
        self._spec = spec
        self._settings = settings
        self._keep = kept_labels(spec, settings)

    def read(self, frame: Any) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """(H, W, 3) uint8 BGR and (w, h). Raises InputError for what is no frame."""
        image = as_bgr(frame)
        return image, (image.shape[1], image.shape[0])

    def detect(self, frames: Sequence[NDArray[np.uint8]], *, streams: Sequence[Any] | None = None) -> list[Found]:
        """Boxes, scores and labels of each frame, (H, W, 3) uint8 BGR; as many runs as the input buffer makes needed.
        ``streams`` mean nothing here.

        Raises:
            EngineError: the runtime failed.
            ModelError: the network's output is not what the spec says.
        """
        step = len(self._engine.input_buffer)
        found: list[Found] = []
        for first in range(0, len(frames), step):
            found += self._detect_chunk(frames[first : first + step])
        return found

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _detect_chunk(self, frames: Sequence[NDArray[np.uint8]]) -> list[Found]:
        """Frames that fit into the input buffer."""
        spec, settings = self._spec, self._settings
        images = self._engine.input_buffer[: len(frames)]
        for frame, image in zip(frames, images, strict=True):
            reference.letterbox(
                frame,
                spec.input_size,
                resize=spec.resize,
                pad=spec.pad,
                sampling=spec.sampling,
                mean=spec.mean,
                std=spec.std,
                out=image,
            )
        found = []
        for frame, rows in zip(frames, self._engine.run(images), strict=True):
            size = (frame.shape[1], frame.shape[0])
            found.append(
                reference.select_detections(
                    rows,
                    placement=geometry.letterbox_placement(size, spec.input_size, spec.resize),
                    frame_size=size,
                    min_score=settings.min_score,
                    nms_iou=settings.nms_iou,
                    class_agnostic=settings.class_agnostic,
                    max_detections=settings.max_detections,
                    keep=self._keep,
                )
            )
        check_scores(found, spec)
        return found
