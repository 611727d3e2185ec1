"""DetectorSpec: how to feed a detector and how to read its outputs, so that any common one runs as it is.

``format`` names how a family of detectors writes its outputs. It stands for the other fields of the output; each of
them can be given beside it and then wins. ``custom`` stands for nothing: there ``outputs`` says which roles there are.

| format            | outputs by role (name)                                  | columns of ``rows``        | boxes             | activation | background | label_offset | nms_iou | seen in |
|-------------------|---------------------------------------------------------|----------------------------|-------------------|------------|------|---|------|------------------------------------------------|
| yolox             | rows (the only output)                                  | box, objectness, classes   | cxcywh, grid (strides 8, 16, 32) | none | | | 0.45 | YOLOX's own export: raw grids, sigmoid inside   |
| yolov5            | rows (the only output)                                  | box, objectness, classes   | cxcywh, px        | none       |      |   | 0.45 | YOLOv5, YOLOv7; YOLOX with decoded boxes        |
| yolov8            | rows, transposed (the only output)                      | box, classes               | cxcywh, px        | none       |      |   | 0.7  | YOLOv8, YOLOv9, YOLO11                          |
| mmdeploy          | rows (dets), labels (labels)                            | box, score                 | xyxy, px          | none       |      | 0 |      | mmdeploy: RTMDet, YOLOX and others, NMS inside  |
| end2end           | rows (the only output)                                  | box, score, label          | xyxy, px          | none       |      | 0 |      | YOLOv10, YOLO26, YOLOv8 exported with NMS       |
| yolov7_end2end    | rows (the only output)                                  | batch, box, label, score   | xyxy, px          | none       |      | 0 |      | YOLOv7 exported with NMS                        |
| efficient_nms     | count (num_dets), boxes (det_boxes), scores (det_scores), labels (det_classes) | | xyxy, px        | none       |      | 0 |      | TensorRT's EfficientNMS plugin                  |
| rtdetr            | scores (logits or pred_logits), boxes (pred_boxes)      |                            | cxcywh, normalized | sigmoid   |      |   |      | RT-DETR, D-FINE, Deformable DETR: logits        |
| detr              | scores (logits or pred_logits), boxes (pred_boxes)      |                            | cxcywh, normalized | softmax   | -1   |   |      | DETR, YOLOS: a last class "no object"           |
| rtdetr_deployed   | labels (labels), boxes (boxes), scores (scores)         |                            | xyxy, px          | none       |      | 0 |      | RT-DETR, D-FINE with their postprocessor; the second input orig_target_sizes becomes input_size |
| torchvision       | boxes (boxes), labels (labels), scores (scores)         |                            | xyxy, px          | none       |      | 1 |      | torchvision: Faster R-CNN, RetinaNet, SSDlite   |
| ssd               | scores (scores), boxes (boxes)                          |                            | xyxy, normalized  | none       | 0    |   | 0.45 | SSD with decoded boxes                          |
| tensorflow        | boxes (detection_boxes), labels (detection_classes), scores (detection_scores), count (num_detections) | | yxyx, normalized | none | | 1 | | TensorFlow's object detection API |
| detection_output  | rows (the only output)                                  | batch, label, score, box   | xyxy, normalized  | none       |      | 1 |      | OpenVINO, Caffe: (1, 1, N, 7)                   |
| custom            | as ``outputs`` says                                     | as ``columns`` says        | xyxy, px          | none       |      | 0 |      |                                                 |

The roles of outputs. Either ``rows``, or ``boxes`` and ``scores``; ``labels`` and ``count`` beside them where a model has
them. Q is the number of candidates; it may differ from run to run (NMS inside). The batch axis may be missing. Axes of
length 1 in excess are dropped.

| role   | shape                                | what                                                                     |
|--------|--------------------------------------|--------------------------------------------------------------------------|
| rows   | (N, Q, V); transposed: (N, V, Q)     | the columns of each candidate, as ``columns`` names them                 |
| boxes  | (N, Q, 4); transposed: (N, 4, Q)     | four values as ``box_format`` says                                       |
| scores | (N, Q) with labels; else (N, Q, C), transposed: (N, C, Q) | one score, or one for each class                    |
| labels | (N, Q)                               | number of the category, plus ``label_offset``                            |
| count  | (N,) or (N, 1)                       | how many of the Q are detections                                         |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, get_args

from edgepose.kernels._detections import MAX_CANDIDATES
from edgepose.kernels._placement import Resize
from edgepose.normalization import ColorOrder, Layout, canonical_normalization, normalization_problems
from edgepose.spec import Sampling
from edgepose.specfields import (
    Reader,
    SpecFields,
    boolean,
    integer,
    integers,
    named_numbers,
    named_strings,
    number,
    numbers,
    optional,
    string,
    strings,
)

__all__ = ["COLUMNS", "FORMATS", "METADATA_KEY", "ROLES", "DetectorSpec"]

METADATA_KEY = "edgepose_detector"
ROLES = ("rows", "boxes", "scores", "labels", "count")
COLUMNS = ("box", "objectness", "classes", "score", "label", "batch", "skip", "rest")
_BOX_FORMATS = ("xyxy", "cxcywh", "xywh", "yxyx")
_BOX_UNITS = ("px", "normalized", "grid")
_ACTIVATIONS = ("none", "sigmoid", "softmax")

_NEVER_EMPTY = {"columns", "box_format", "box_units", "strides", "activation"}  # fields whose "" or () says: left out

ONLY = ""  # the name of an output that is the model's only one
_GRID = {"box_format": "cxcywh", "box_units": "grid", "strides": (8, 16, 32)}
_CENTRES = {"box_format": "cxcywh", "box_units": "px"}
_NORMALIZED = {"box_format": "xyxy", "box_units": "normalized"}
_LOGITS = {
    "outputs": {"scores": "logits|pred_logits", "boxes": "pred_boxes"},
    "box_format": "cxcywh",
    "box_units": "normalized",
}
_DECODED = {"outputs": {"boxes": "boxes", "labels": "labels", "scores": "scores"}}

# What each format stands for; a field that is not named is as in `_PLAIN`. In an output's name | separates the names
# that exporters give it.
_PLAIN: dict[str, Any] = {
    "outputs": {"rows": ONLY},
    "columns": (),
    "transposed": (),
    "box_format": "xyxy",
    "box_units": "px",
    "strides": (),
    "activation": "none",
    "background": None,
    "label_offset": 0,
    "nms_iou": None,
}
FORMATS: dict[str, dict[str, Any]] = {
    "yolox": {"columns": ("box", "objectness", "classes"), **_GRID, "nms_iou": 0.45},
    "yolov5": {"columns": ("box", "objectness", "classes"), **_CENTRES, "nms_iou": 0.45},
    "yolov8": {"columns": ("box", "classes"), "transposed": ("rows",), **_CENTRES, "nms_iou": 0.7},
    "mmdeploy": {"outputs": {"rows": "dets", "labels": "labels"}, "columns": ("box", "score")},
    "end2end": {"columns": ("box", "score", "label")},
    "yolov7_end2end": {"columns": ("batch", "box", "label", "score")},
    "efficient_nms": {
        "outputs": {"count": "num_dets", "boxes": "det_boxes", "scores": "det_scores", "labels": "det_classes"}
    },
    "rtdetr": {**_LOGITS, "activation": "sigmoid"},
    "detr": {**_LOGITS, "activation": "softmax", "background": -1},
    "rtdetr_deployed": _DECODED,
    "torchvision": {**_DECODED, "label_offset": 1},
    "ssd": {"outputs": {"scores": "scores", "boxes": "boxes"}, **_NORMALIZED, "background": 0, "nms_iou": 0.45},
    "tensorflow": {
        "outputs": {
            "boxes": "detection_boxes",
            "labels": "detection_classes",
            "scores": "detection_scores",
            "count": "num_detections",
        },
        "box_format": "yxyx",
        "box_units": "normalized",
        "label_offset": 1,
    },
    "detection_output": {"columns": ("batch", "label", "score", "box"), **_NORMALIZED, "label_offset": 1},
    "custom": {"outputs": {}},
}


@dataclass(frozen=True)
class DetectorSpec(SpecFields):
    """How to feed a detector and how to read its outputs.

    The network's input is (level * scale - mean) / std, of levels 0–255 of the resized picture. Of a field that is left
    out, ``spec`` holds what ``format`` says, as the table of :mod:`edgepose.detector_spec` shows.

    Attributes:
        name: what the detector is called in results and messages.
        input_size: (w, h) of the network's input, px.
        category_names: C names, in the order of the labels. "" for a number that stands for nothing, as some of the 91
            of COCO do; of such a category nothing is ever found.
        format: how the outputs are written; see the table.
        color: order of the input's channels: ``rgb`` or ``bgr``.
        layout: order of the input's axes: ``nchw`` or ``nhwc``.
        scale: what levels are multiplied by; 0.00392156862745098 (1/255) for a network that takes 0..1.
        mean, std: normalisation after ``scale``, three values in the order of ``color``.
        resize: ``letterbox``: the frame's shape is kept, the picture lies in the middle of the input;
            ``letterbox_corner``: at its top left (YOLOX, MMDetection); ``stretch``: it fills the input (RT-DETR).
        pad: level of what the picture leaves free, 0–255.
        sampling: how the picture is interpolated (see ``kernels.reference.crop_warp``): ``linear``, ``opencv4``
            (OpenCV's fixed point), ``area`` (without aliasing when a large frame is shrunk).
        outputs: the name of the output in each role, where it is not what the format says.
        columns: what a row holds, in this order: ``box`` (4 values), ``objectness``, ``classes`` (C scores, one more
            with a background), ``score``, ``label``, ``batch`` (number of the picture), ``skip`` (one value that means
            nothing here), and at last ``rest`` (any number of those).
        transposed: roles of ``rows``, ``boxes``, ``scores`` whose last two axes are the other way round: (N, V, Q).
        box_format: ``xyxy``, ``cxcywh`` (centre and size), ``xywh`` (top left and size) or ``yxyx``.
        box_units: ``px`` of the input; ``normalized``: 0..1 of the input; ``grid``: cx and cy as offsets from a cell's
            corner, in cells, w and h as logarithms of cells (YOLOX).
        strides: px of a cell in each grid, in the order of the rows; cells run along x first.
        activation: what turns the network's class scores into 0..1: ``none`` (the model does it), ``sigmoid`` or
            ``softmax`` over the classes. An objectness takes the sigmoid with either.
        background: index of the class "no object" among the scores, which belongs to no category; -1: the last.
        label_offset: what the network's labels count more than ``category_names``: 1 where 0 is the background.
        nms_iou: IoU above which the lower of two boxes of one category is dropped; 1 keeps all. None: the model
            repeats no object (NMS inside, or trained so).
        class_agnostic: categories exclude each other: boxes of different ones are dropped for each other too, as a
            garment is either a shirt or outerwear. Needs ``nms_iou``.
        min_score: detections below it are dropped.
        max_detections: the most detections of a frame, at most 1024; the best are kept.
        constants: values of further inputs by name, the same for each picture, for instance
            ``{"scale_factor": [1, 1]}``.
        license: licence of the weights, an SPDX expression where there is one.
        metrics: figures of the training run, for instance ``{"mAP@0.5": 0.61}``.
        training: where the weights come from: data, command, date.

    Raises:
        ModelError: a field is missing, unknown, or contradicts another one.
    """

    name: str
    input_size: tuple[int, int]
    category_names: tuple[str, ...]
    format: str
    color: ColorOrder = "rgb"
    layout: Layout = "nchw"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: Resize = "letterbox"
    pad: int = 114
    sampling: Sampling = "linear"
    outputs: Mapping[str, str] = field(default_factory=dict, hash=False)
    columns: tuple[str, ...] = ()
    transposed: tuple[str, ...] | None = None
    box_format: str = ""
    box_units: str = ""
    strides: tuple[int, ...] = ()
    activation: str = ""
    background: int | None = None
    label_offset: int | None = None
    nms_iou: float | None = None
    class_agnostic: bool = False
    min_score: float = 0.3
    max_detections: int = 100
    constants: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    license: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    training: Mapping[str, str] = field(default_factory=dict, hash=False)

    METADATA_KEY: ClassVar[str] = METADATA_KEY
    SCHEMA_VERSION: ClassVar[int] = 1
    READERS: ClassVar[Mapping[str, Reader]]
    NO_METADATA: ClassVar[str]

    @property
    def num_categories(self) -> int:
        """C, the number of categories."""
        return len(self.category_names)

    @property
    def num_classes(self) -> int:
        """Class scores of a candidate: C, and one more with a background."""
        return self.num_categories + (self.background is not None)

    @property
    def is_canonical(self) -> bool:
        """Whether ``canonical`` changes nothing."""
        return self == self.canonical()

    def canonical(self) -> DetectorSpec:
        """The spec of the same detector after :func:`edgepose.adapt_detector.adapt_detector`.

        Its input is RGB NCHW, normalised by mean and std alone; its one output is ``end2end``, rows (N, Q, 6): x1, y1,
        x2, y2, px of the input, score, label.
        """
        mean, std = canonical_normalization(self)
        output = {name: value for name, value in _PLAIN.items() if name != "nms_iou"}  # somebody must still do that
        output |= FORMATS["end2end"]
        return replace(
            self, color="rgb", layout="nchw", scale=1.0, mean=mean, std=std, format="end2end", constants={}, **output
        )

    def __post_init__(self) -> None:
        """Fill in what the format says, then check."""
        defaults = {**_PLAIN, **(FORMATS.get(self.format, {}) if isinstance(self.format, str) else {})}
        if isinstance(self.outputs, Mapping):
            object.__setattr__(self, "outputs", {**defaults.pop("outputs"), **self.outputs})
        if self.box_units not in ("", "grid"):
            defaults["strides"] = ()
        for name, default in defaults.items():
            left_out: tuple[Any, ...] = ("", (), []) if name in _NEVER_EMPTY else (None,)
            if getattr(self, name) in left_out:
                object.__setattr__(self, name, default)
        super().__post_init__()

    def _problems(self) -> list[str]:
        if self.format not in FORMATS:  # nothing else can be judged
            return [f"format must be one of {', '.join(FORMATS)}, got {self.format!r}"]
        names = [name for name in self.category_names if name]
        problems = normalization_problems(self)
        if not names:
            problems.append("category_names is empty: give one name for each class, in the order of the labels")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"category_names holds {twice[0]!r} twice: categories are chosen by name")
        if len(self.input_size) != 2 or min(self.input_size) < 2:
            problems.append(f"input_size must be two integers (width, height) of at least 2, got {self.input_size!r}")
        for name, allowed in (
            ("sampling", get_args(Sampling)),
            ("resize", get_args(Resize)),
            ("box_format", _BOX_FORMATS),
            ("box_units", _BOX_UNITS),
            ("activation", _ACTIVATIONS),
        ):
            if getattr(self, name) not in allowed:
                problems.append(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.pad <= 255:
            problems.append(f"pad must be a level 0..255, got {self.pad}")
        if self.nms_iou is not None and not 0 < self.nms_iou <= 1:
            problems.append(f"nms_iou must be above 0 and at most 1 (which keeps all boxes), got {self.nms_iou}")
        if self.class_agnostic and self.nms_iou is None:
            problems.append(
                f"class_agnostic says how boxes suppress each other, and {self.format} leaves them as they come: give "
                "an nms_iou"
            )
        if not 0 <= self.min_score <= 1:
            problems.append(f"min_score must be 0..1, got {self.min_score}")
        if not 1 <= self.max_detections <= MAX_CANDIDATES:
            problems.append(f"max_detections must be 1..{MAX_CANDIDATES}, got {self.max_detections}")
        return problems + self._output_problems()

    def _output_problems(self) -> list[str]:
        roles, columns = set(self.outputs), self.columns
        problems = []
        if unknown := sorted(roles - set(ROLES)):
            problems.append(f"outputs: {unknown[0]!r} is no role; there are {', '.join(ROLES)}")
        if roles - {"labels", "count"} not in ({"rows"}, {"boxes", "scores"}):
            problems.append(
                "outputs must name rows, or boxes and scores (labels and count beside them where there are any), "
                f"got {sorted(roles) or 'none'}"
            )
        if unknown := sorted(set(self.transposed or ()) - (roles & {"rows", "boxes", "scores"})):
            problems.append(
                f"transposed: {unknown[0]!r} is none of the outputs rows, boxes and scores of this detector"
            )
        if "rows" in roles:
            problems += _column_problems(columns, "labels" in roles, self.num_categories)
        elif columns:
            problems.append(f"columns say what rows hold, and this detector has none: leave them out, got {columns}")
        if self.box_units == "grid":
            if self.box_format != "cxcywh":
                problems.append(f"boxes in units of a grid are cxcywh, got box_format {self.box_format!r}")
            if not self.strides or any(stride < 1 for stride in self.strides):
                problems.append(f"box_units grid needs strides, px of a cell in each grid, got {self.strides}")
        elif self.strides:
            problems.append(f"strides belong to box_units grid, which is {self.box_units!r} here: leave them out")
        by_class = "classes" in columns if "rows" in roles else "labels" not in roles
        if by_class and self.label_offset:
            problems.append("label_offset is of labels that the model gives, and this detector gives class scores")
        if not by_class and self.background is not None:
            problems.append("background is one of the class scores, and this detector gives labels instead")
        if not by_class and self.activation == "softmax":
            problems.append("softmax goes over class scores, and this detector gives labels instead")
        if self.background is not None and not -1 <= self.background <= self.num_categories:
            problems.append(f"background must be an index 0..{self.num_categories} or -1, got {self.background}")
        return problems


def _column_problems(columns: tuple[str, ...], labels: bool, categories: int) -> list[str]:
    """What is wrong with the columns of rows; ``labels``: there is an output of them."""
    if not columns:
        return ["columns must say what a row holds, for instance box, score, label"]
    if unknown := [name for name in columns if name not in COLUMNS]:
        return [f"columns: {unknown[0]!r} is not known; there are {', '.join(COLUMNS)}"]
    if twice := [name for name in columns if name != "skip" and columns.count(name) > 1]:
        return [f"columns hold {twice[0]!r} twice"]
    problems = []
    if "box" not in columns:
        problems.append("columns must hold box, the four values of a box")
    if ("classes" in columns) == ("score" in columns):
        problems.append(f"columns must hold either score or classes, got {', '.join(columns)}")
    sources = ("classes" in columns) + ("label" in columns) + labels
    if sources > 1 or (sources == 0 and categories > 1):
        problems.append(
            f"the label must come from one of: the columns classes, the column label, the output labels; got {sources}"
        )
    if "rest" in columns[:-1]:
        problems.append("columns: rest must come last (use skip for a single value)")
    return problems


def _constants(value: Any) -> dict[str, tuple[float, ...]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object of lists of numbers by the inputs' names, got {value!r}")
    return {string(k): numbers(v) for k, v in value.items()}


DetectorSpec.READERS = {
    "name": string,
    "input_size": integers,
    "category_names": strings,
    "format": string,
    "color": string,
    "layout": string,
    "scale": number,
    "mean": numbers,
    "std": numbers,
    "resize": string,
    "sampling": string,
    "pad": integer,
    "outputs": named_strings,
    "columns": strings,
    "transposed": optional(strings),
    "box_format": string,
    "box_units": string,
    "strides": integers,
    "activation": string,
    "background": optional(integer),
    "label_offset": optional(integer),
    "nms_iou": optional(number),
    "class_agnostic": boolean,
    "min_score": number,
    "max_detections": integer,
    "constants": _constants,
    "license": string,
    "metrics": named_numbers,
    "training": named_strings,
}
DetectorSpec.NO_METADATA = """\
carries no edgepose detector spec (it was not exported by edgepose). Write how its input and outputs are to be read \
into a JSON file and pass it: Detector({source!r}, spec='spec.json'). For example:
{
  "name": "my-detector",
  "input_size": [640, 640],
  "category_names": ["person"],
  "format": "yolov8",
  "scale": 0.00392156862745098
}"""
