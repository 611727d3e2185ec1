"""Evaluation with the runtime's own crop and decoder, so that a training figure is a deployment figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.geometry import cells_to_frame, crop_affines, invert_affines
from edgepose.kernels.reference import crop_warp, decode_heatmaps
from edgepose.predictor import Predictor
from edgepose.spec import ModelSpec
from edgepose.training import metrics
from edgepose.training.coco import Annotation, read_frame

__all__ = ["Evaluation", "evaluate", "evaluate_predictor", "score"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one split; distances in frame px unless they say otherwise.

    Attributes:
        pck_20, pck_05: PCK at 0.2 and 0.05 of the box's longer side, averaged over landmarks as MMPose does.
        auc: MMPose's AUC (0 … 28.5 px).
        epe: mean error, px.
        mean_error: mean error as a fraction of the box's longer side.
        pck_05_by_keypoint: (K,) PCK@0.05 of each landmark, NaN where it is never visible.
    """

    pck_20: float
    pck_05: float
    auc: float
    epe: float
    mean_error: float
    pck_05_by_keypoint: tuple[float, ...]

    def metrics(self) -> dict[str, float]:
        """The figures under the names that a ModelSpec carries, rounded to five digits."""
        values = {"PCK@0.2": self.pck_20, "PCK@0.05": self.pck_05, "AUC": self.auc, "EPE": self.epe}
        return {name: round(v, 5) for name, v in {**values, "mean_error/longer_side": self.mean_error}.items()}


def evaluate_predictor(predictor: Predictor, annotations: Sequence[Annotation]) -> Evaluation:
    """Run a predictor over a labelled split, inside the annotated boxes.

    Raises:
        InputError: the split is empty, an image cannot be read, or the model has other landmarks than the labels.
    """
    results = [predictor.predict(read_frame(a), a.box[None]) for a in annotations]
    return score([result.keypoints[0] for result in results], annotations)


def evaluate(
    forward: Callable[[Array], Array], annotations: Sequence[Annotation], spec: ModelSpec, batch_size: int = 32
) -> Evaluation:
    """Run a network over a labelled split, inside the annotated boxes and without a flip test.

    ``forward`` maps normalised RGB (n, 3, h, w) float32 to heatmaps (n, K, h/4, w/4) float32. The steps around it are
    the predictor's.
    """
    keypoints: list[Array] = []
    for start in range(0, len(annotations), batch_size):
        chunk = annotations[start : start + batch_size]
        affines = crop_affines(np.stack([a.box for a in chunk]), spec.input_size, spec.codec, spec.padding)
        images = [
            crop_warp(
                read_frame(a), affine[None], spec.input_size, sampling=spec.sampling, mean=spec.mean, std=spec.std
            )
            for a, affine in zip(chunk, affines, strict=True)
        ]
        points, _ = decode_heatmaps(
            forward(np.concatenate(images)),
            refinement=spec.refinement,
            blur_kernel=spec.blur_kernel,
            cells_to_frame=cells_to_frame(invert_affines(affines), spec),
        )
        keypoints.extend(points)
    return score(keypoints, annotations)


def score(keypoints: Sequence[Array], annotations: Sequence[Annotation]) -> Evaluation:
    """Compare predicted landmarks, (K, 2) frame px for each annotation, with the labels."""
    if not annotations:
        raise InputError("nothing to evaluate: the split has no annotations")
    predicted = np.stack(keypoints).astype(np.float32)
    truth = np.stack([a.keypoints for a in annotations])
    if predicted.shape != truth.shape:
        raise InputError(f"the model has {predicted.shape[1]} landmarks, the labels have {truth.shape[1]}")
    visible = np.stack([a.visible for a in annotations])
    boxes = np.stack([a.box for a in annotations])
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    relative = np.linalg.norm(predicted - truth, axis=-1) / side[:, None]
    return Evaluation(
        pck_20=metrics.pck(predicted, truth, visible, boxes, threshold=0.2),
        pck_05=metrics.pck(predicted, truth, visible, boxes, threshold=0.05),
        auc=metrics.auc(predicted, truth, visible),
        epe=metrics.epe(predicted, truth, visible),
        mean_error=float(relative[visible > 0].mean()) if visible.any() else 0.0,
        pck_05_by_keypoint=tuple(metrics.pck_per_keypoint(predicted, truth, visible, boxes, threshold=0.05).tolist()),
    )
