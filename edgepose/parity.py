"""The parity report: how far an engine's landmarks are from the float32 model's, on the same crops.

Heatmaps of reference and candidate are decoded as `Predictor` does it, with the spec's refinement, and compared in crop
px. What counts:

    landmarks   whose float32 score is at least `MIN_SCORE` times the highest one of all crops, and which the float32
                model's refinement leaves within a cell of their peak. Below that score a map shows no landmark, and
                beyond that step its maximum has not the shape of a peak: DARK then magnifies any rounding.
    jumps       whose peak lies more than one cell away from the reference's: another peak won. Their distance says
                nothing about precision, so the px figures leave them out.
    ties        jumps to a peak that the candidate finds no more than `TIE` of its height above the reference's place:
                both are as good, and rounding decided. They are counted apart, and not as misses of PCK.
    PCK@t       the share of landmarks, ties aside, within t times the longer side of the object's box of the float32
                result. It is the most that PCK against the truth can change by, and `pck_change` says that.

`complete` redoes the report where the engine runs: the crops and the float32 results lie beside it. Detectors have a
report of their own, :mod:`edgepose.detection_parity`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.crops import Crops
from edgepose.errors import EngineError, ModelError
from edgepose.files import write_atomically
from edgepose.jsonfields import kind, mapping_of, one_of
from edgepose.kernels import reference as twins
from edgepose.parity_fields import ReportFields
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    from edgepose.detection_parity import DetectionReport
    from edgepose.enginefile import EngineInfo

__all__ = ["LIMITS", "Limits", "Matches", "ParityReport", "Reference", "compare", "complete", "match", "run_in_batches"]

Scope = Literal["engine", "graph"]
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

MIN_SCORE = 0.2
TIE = 0.02  # ten times what float16 does to a heatmap (worst seen: 0.0016 of the maximum, ResNet-50)


@dataclass(frozen=True)
class Limits:
    """What a report may say before an engine is refused.

    Measured with `garment-landmarks` on drawn shapes, rendered garments and real photos, float16 against float32:
    median 0.005 to 0.009 px, 99 % within 0.07 px, scores within 0.004, no jump; ResNet-50 with random weights and
    quarter shifts: median 0, scores within 0.0012, all jumps ties. What must be refused, measured on the same crops
    with the first `garment-landmarks`, a ResNet-18: 3 % noise in the heatmaps has 0.15 to 0.20 px, scores off by 0.07
    to 0.09, wrong jumps of 1 to 3 %; red and blue exchanged has 0.8 to 1.1 px and PCK@0.05 of 0.94 to 0.99; heatmaps
    moved by a cell have 4 px.

    Attributes:
        px_median, px_p99: of the landmarks' distances, crop px.
        wrong_jumps: jumps that are no ties, as a share of the landmarks.
        pck_05: smallest PCK@0.05.
        score_error: of the peaks' values, relative to the highest.
    """

    px_median: float = 0.1
    px_p99: float = 3.0  # a quarter shift that turns round in x and y moves a landmark by 2.8 px at stride 4
    wrong_jumps: float = 0.01
    pck_05: float = 0.99
    score_error: float = 0.05


LIMITS = Limits()


@dataclass(frozen=True)
class ParityReport(ReportFields):
    """A candidate's landmarks beside the float32 model's; see the module for what counts.

    Attributes:
        scope: ``engine``: the engine itself ran. ``graph``: the machine cannot run it, so ONNX Runtime ran the graph
            that it is built from, with every layer's result rounded to the engine's precision.
        source: what the crops are.
        crops: how many.
        landmarks: how many were compared.
        px_median, px_p99, px_max: distances, crop px, jumps left out.
        jumps, ties: landmarks whose peak is another one; those of them where both peaks are as high.
        pck_05, pck_20: PCK@0.05 and PCK@0.2 against the float32 result.
        score_error: largest difference of a peak's value, relative to the highest reference value.
        heatmap_error: the same over all heatmap values; None: the reference's heatmaps were not at hand.
        not_finite: heatmap values that are NaN or infinite.
        convolutions: convolution layers by what they compute in, for instance ``{"float16": 57}``: the precision that
            the engine really has. With scope ``graph`` those of the network that TensorRT built from.
    """

    scope: Scope
    source: str
    crops: int
    landmarks: int
    px_median: float
    px_p99: float
    px_max: float
    jumps: int
    ties: int
    pck_05: float
    pck_20: float
    score_error: float
    heatmap_error: float | None
    not_finite: int
    convolutions: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def pck_change(self) -> float:
        """The most that PCK@0.05 can lose against the float32 model, as a negative fraction."""
        return self.pck_05 - 1.0

    @property
    def compared(self) -> int:
        """How many landmarks were compared; without any, nothing is known."""
        return self.landmarks

    @property
    def counted(self) -> str:
        """What was compared, in words."""
        return f"{self.landmarks} landmarks of {self.crops} crops"

    def problems(self, limits: Limits = LIMITS) -> tuple[str, ...]:
        """What is beyond the limits, in words; empty: nothing."""
        if self.landmarks == 0:
            return ("the float32 model finds no landmark that could be compared",)
        wrong = self.jumps - self.ties
        own = (
            (
                wrong,
                max(1, limits.wrong_jumps * self.landmarks),  # one of few landmarks is chance
                f"{wrong} of {self.landmarks} landmarks are elsewhere (limit {100 * limits.wrong_jumps:g} %)",
            ),
            (limits.pck_05, self.pck_05, f"PCK@0.05 {self.pck_05:.4f} (limit {limits.pck_05:g})"),
        )
        return self._beyond(limits, f"{self.not_finite} heatmap values are NaN or infinite", own)


_NUMBER, _COUNT = kind(int, float), kind(int)
ParityReport.READERS = {
    "scope": one_of(*get_args(Scope)),
    "source": kind(str),
    **dict.fromkeys(("crops", "landmarks", "jumps", "ties", "not_finite"), _COUNT),
    **dict.fromkeys(("px_median", "px_p99", "px_max", "pck_05", "pck_20", "score_error"), _NUMBER),
    "heatmap_error": kind(int, float, type(None)),
    "convolutions": mapping_of(int),
}


@dataclass(frozen=True, eq=False)
class Reference:
    """What the float32 model finds in some crops.

    Attributes:
        crops: the pictures.
        keypoints: (N, K, 2) float32, crop px.
        cells: (N, K, 2) int16, (x, y) of the heatmaps' peaks; -1 where there is none.
        scores: (N, K) float32.
    """

    crops: Crops
    keypoints: NDArray[np.float32]
    cells: NDArray[np.int16]
    scores: NDArray[np.float32]

    @classmethod
    def from_heatmaps(cls, crops: Crops, heatmaps: NDArray[Any], spec: ModelSpec) -> Reference:
        """Decode the float32 model's heatmaps (N, K, h, w)."""
        return cls(crops, *_decode(heatmaps, spec))

    def to_bytes(self) -> bytes:
        """A .npz file."""
        import io

        file = io.BytesIO()
        np.savez_compressed(
            file,
            images=self.crops.images,
            source=np.array(self.crops.source),
            keypoints=self.keypoints,
            cells=self.cells,
            scores=self.scores,
        )
        return file.getvalue()

    def write(self, path: Path) -> None:
        """Store it as .npz."""
        write_atomically(path, self.to_bytes())

    @classmethod
    def read(cls, path: Path, spec: ModelSpec) -> Reference:
        """Read what ``write`` or ``to_bytes`` made.

        Raises:
            EngineError: it is missing, damaged, or belongs to another model.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                crops = Crops(data["images"], str(data["source"]))
                found = cls(crops, data["keypoints"], data["cells"], data["scores"])
        except Exception as error:  # a zip file that is cut off raises one of half a dozen classes
            raise EngineError(
                f"{path} cannot be read ({error}): copy it from where the engine was built, or build the engine again"
            ) from None
        (w, h), count, k = spec.input_size, len(crops.images), spec.num_keypoints
        shapes = (crops.images.shape, found.keypoints.shape, found.cells.shape, found.scores.shape)
        if shapes != ((count, h, w, 3), (count, k, 2), (count, k, 2), (count, k)) or crops.images.dtype != np.uint8:
            raise EngineError(f"{path} belongs to another engine: copy the one beside it, or build the engine again")
        return found


def compare(
    reference_heatmaps: NDArray[Any],  # (N, K, h, w)
    candidate_heatmaps: NDArray[Any],  # (N, K, h, w)
    spec: ModelSpec,
    *,
    scope: Scope = "graph",
    source: str = "",
    convolutions: Mapping[str, int] | None = None,
) -> ParityReport:
    """Compare heatmaps of the same crops.

    Args:
        reference_heatmaps: the float32 model's.
        candidate_heatmaps: the engine's, float16 or float32.
        spec: says how they are decoded.
        scope, source, convolutions: for the report.

    Raises:
        ModelError: the heatmaps' shapes are not what the spec says.
    """
    w, h = spec.input_size
    blank = Crops(np.zeros((len(reference_heatmaps), h, w, 3), np.uint8), source)
    reference = Reference.from_heatmaps(blank, reference_heatmaps, spec)
    report = judge(reference, candidate_heatmaps, spec, scope=scope, convolutions=convolutions)
    scale = float(np.abs(reference_heatmaps).max(initial=0)) or 1.0
    with np.errstate(invalid="ignore"):
        difference = np.abs(np.asarray(candidate_heatmaps, np.float32) - np.asarray(reference_heatmaps, np.float32))
    finite = difference[np.isfinite(difference)]
    return replace(report, heatmap_error=float(finite.max(initial=0)) / scale)


def judge(
    reference: Reference,
    heatmaps: NDArray[Any],  # (N, K, h, w)
    spec: ModelSpec,
    *,
    scope: Scope,
    convolutions: Mapping[str, int] | None = None,
) -> ParityReport:
    """A candidate's heatmaps beside what the float32 model found; as :func:`compare`, without its heatmaps."""
    counts, jumped, tied, distances, score_errors = match(reference, heatmaps, spec)
    near = distances[counts & ~jumped]
    compared = distances[counts & ~tied]
    side = max(spec.input_size) / spec.padding  # the longer side of the box, in crop px
    highest = float(reference.scores.max(initial=0)) or 1.0
    score_errors = score_errors[counts & np.isfinite(score_errors)]
    return ParityReport(
        scope=scope,
        source=reference.crops.source,
        crops=len(reference.crops.images),
        landmarks=int(counts.sum()),
        px_median=float(np.median(near)) if len(near) else 0.0,
        px_p99=float(np.percentile(near, 99)) if len(near) else 0.0,
        px_max=float(near.max(initial=0)),
        jumps=int(jumped.sum()),
        ties=int(tied.sum()),
        pck_05=float((compared < 0.05 * side).mean()) if len(compared) else 0.0,
        pck_20=float((compared < 0.2 * side).mean()) if len(compared) else 0.0,
        score_error=float(score_errors.max(initial=0)) / highest,
        heatmap_error=None,
        not_finite=int(np.count_nonzero(~np.isfinite(heatmaps))),
        convolutions=dict(convolutions or {}),
    )


class Matches(NamedTuple):
    """Each landmark of a candidate beside the reference's, (N, K) all; see the module for the words.

    Attributes:
        counts, jumped, tied: bool.
        distances: float, crop px, also of landmarks that do not count.
        score_errors: float32, differences of the peaks' values.
    """

    counts: NDArray[np.bool_]
    jumped: NDArray[np.bool_]
    tied: NDArray[np.bool_]
    distances: NDArray[np.floating[Any]]
    score_errors: NDArray[np.float32]


def match(reference: Reference, heatmaps: NDArray[Any], spec: ModelSpec) -> Matches:
    """Decode a candidate's heatmaps (N, K, h, w) and match its landmarks with the reference's, one by one."""
    keypoints, cells, scores = _decode(heatmaps, spec)
    peaks, cell = (
        geometry.heatmap_to_crop(places, spec.codec, spec.input_size, spec.heatmap_size)
        for places in (reference.cells, np.ones(2))
    )
    steps = np.abs(reference.keypoints - peaks).max(axis=2)
    high = (reference.scores > 0) & (reference.scores >= MIN_SCORE * reference.scores.max(initial=0))
    counts = high & (steps <= cell.max())
    jumped = counts & (np.abs(cells.astype(int) - reference.cells).max(axis=2) > 1)
    tied = jumped & (_values_at(heatmaps, reference.cells) >= (1 - TIE) * scores) & (scores > 0)
    distances = np.linalg.norm(keypoints - reference.keypoints, axis=2)
    return Matches(counts, jumped, tied, distances, np.abs(scores - reference.scores))


def complete(
    info: EngineInfo, parity_file: Path, run: Run, *, convolutions: Mapping[str, int] | None = None
) -> EngineInfo:
    """Redo an engine's parity report with the engine itself.

    Args:
        info: its sidecar.
        parity_file: :func:`edgepose.enginefile.parity_path` of the engine.
        run: (N, 3, h, w) float32 RGB, normalised -> heatmaps (N, K, h, w), or a detector's rows (N, Q, 6); N within the
            engine's profile.
        convolutions: of the loaded engine, see :mod:`edgepose.engines.inspection`; None or empty: those of the network
            are kept.

    Returns:
        The sidecar with the engine's own report; not written.

    Raises:
        EngineError: the parity file is not usable; or the engine is beyond the limits, and was not built with force.
    """
    layers = convolutions or info.parity.convolutions
    report: ParityReport | DetectionReport
    if isinstance(info.spec, ModelSpec):
        reference = Reference.read(parity_file, info.spec)
        heatmaps = run_in_batches(run, reference.crops.normalized(info.spec), info.profile)
        report = judge(reference, heatmaps, info.spec, scope="engine", convolutions=layers)
    else:
        from edgepose.detection_parity import DetectionReference, judge_detections

        detections = DetectionReference.read(parity_file, info.spec)
        rows = run_in_batches(run, detections.crops.normalized(info.spec), info.profile)
        report = judge_detections(detections, rows, info.spec, scope="engine", convolutions=layers)
    if (problems := report.problems()) and not info.options.force:
        raise EngineError(
            f"the engine of {info.onnx} differs too much from the float32 model on this machine: "
            f"{'; '.join(problems)}. Build it again with --precision fp32, or with --force to use it as it is"
        )
    return replace(info, parity=report)


def run_in_batches(run: Run, images: NDArray[np.float32], profile: tuple[int, int, int]) -> NDArray[np.float32]:
    """Heatmaps of any number of images from a network that takes between profile[0] and profile[2] at a time.

    The last batch is filled up with zeros where it must be.
    """
    smallest, _, largest = profile
    parts = []
    for start in range(0, len(images), largest):
        batch = images[start : start + largest]
        missing = max(0, smallest - len(batch))
        filled = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)]) if missing else batch
        parts.append(np.asarray(run(filled))[: len(batch)])
    return np.concatenate(parts)


def _decode(
    heatmaps: NDArray[Any], spec: ModelSpec
) -> tuple[NDArray[np.float32], NDArray[np.int16], NDArray[np.float32]]:
    """Keypoints (N, K, 2), crop px, the peaks' cells (N, K, 2), and scores (N, K)."""
    w, h = spec.heatmap_size
    if heatmaps.ndim != 4 or heatmaps.shape[1:] != (spec.num_keypoints, h, w):
        raise ModelError(
            f"{spec.name}: by its spec heatmaps are (N, {spec.num_keypoints}, {h}, {w}), got {heatmaps.shape}"
        )
    locations, scores = twins.decode_heatmaps(heatmaps, refinement=spec.refinement, blur_kernel=spec.blur_kernel)
    cells, _ = twins.decode_heatmaps(heatmaps, refinement="none")
    keypoints = geometry.heatmap_to_crop(locations, spec.codec, spec.input_size, spec.heatmap_size)
    return keypoints.astype(np.float32), cells.astype(np.int16), scores


def _values_at(heatmaps: NDArray[Any], cells: NDArray[np.int16]) -> NDArray[np.float32]:
    """(N, K): the largest value within one cell of each place, minus infinity where there is no place."""
    padded = np.pad(np.asarray(heatmaps, np.float32), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    padded = np.where(np.isnan(padded), -np.inf, padded)
    rows, channels = np.indices(cells.shape[:2])
    x, y = np.maximum(cells, 0).astype(int).transpose(2, 0, 1)
    around = [padded[rows, channels, y + dy, x + dx] for dy in range(3) for dx in range(3)]
    return np.asarray(np.where(cells[..., 0] < 0, -np.inf, np.max(around, axis=0)), np.float32)
