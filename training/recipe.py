"""`Recipe`: one frozen value that says everything about a training run; free of PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from edgepose.spec import IMAGENET_MEAN, IMAGENET_STD, Codec, ModelSpec, Refinement
from edgepose.training.fashion import DEEPFASHION2, LandmarkSet
from edgepose.training.mmpose_transforms import MMPoseAugmentation
from edgepose.training.schedule import Schedule

__all__ = ["Figures", "Recipe", "Split"]


@dataclass(frozen=True)
class Figures:
    """What weights reach on a recipe's test split, in the labelled boxes, with the recipe's flip test.

    Attributes:
        pck: PCK@0.2, a fraction.
        auc: a fraction; at most 0.95, since MMPose counts the threshold 0.
        epe: mean error, px of the photo.
    """

    pck: float
    auc: float
    epe: float

    def metrics(self) -> dict[str, float]:
        """The figures under the names that a ModelSpec carries."""
        return {"PCK@0.2": self.pck, "AUC": self.auc, "EPE": self.epe}


@dataclass(frozen=True)
class Split:
    """One part of a data set; all paths are relative to the data set's folder.

    Attributes:
        annotations: a COCO keypoint file for each of the recipe's categories.
        images: the folder that the files' image names are relative to.
    """

    annotations: tuple[str, ...]
    images: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that makes one model: what is learnt, on what, how, and what came out.

    ``edgepose recipes NAME`` prints one; ``models.create(recipe.architecture, recipe.num_outputs)`` makes its network.
    """

    name: str
    source: str  # the MMPose configuration that it follows, or whose choice it is

    # What is learnt
    architecture: str  # a name of edgepose.training.models
    landmarks: LandmarkSet  # K of them, and the network's outputs [begin, end) that they are
    num_outputs: int  # heatmaps of the network: K, or 294 for DeepFashion2 whether all are trained or one category's
    input_size: tuple[int, int] = (192, 256)  # (w, h) px
    heatmap_size: tuple[int, int] = (48, 64)  # (w, h) cells
    mean: tuple[float, float, float] = IMAGENET_MEAN  # RGB, 0–255
    std: tuple[float, float, float] = IMAGENET_STD

    # On what: boxes are ground truth, in training as in the tables
    dataset: str  # DeepFashion or DeepFashion2
    category: str  # upper, lower, full; one of DeepFashion2's 13; or all of them
    train: Split
    validation: Split  # picks the best epoch
    test: Split
    padding: float = 1.25  # of the box

    # How
    pretrained: str  # where MMPose's backbone weights come from; yours come with --init
    augmentation: MMPoseAugmentation = field(default_factory=MMPoseAugmentation)
    codec: Codec = "msra"
    schedule: Schedule  # optimiser, rate, length and loss
    gpus: int  # schedule.batch_size = gpus * batch_per_gpu: batch normalisation sees batch_per_gpu crops
    batch_per_gpu: int
    base_batch_size: (
        int  # what MMPose's --auto-scale-lr would divide by; that option is off, so the rate is as it stands
    )
    declares_udp: bool = False  # see `declared`

    # Test
    refinement: Refinement = "shift"
    blur_kernel: int = 11  # cells; used by dark and dark_udp
    flip_test: bool = True  # average each image with its mirror image
    flip_shift: bool = True  # move the mirrored maps one cell to the right

    # What came out
    published: Figures | None = None  # in MMPose's table
    checkpoint_url: str = ""  # of the published weights
    ours: Figures | None = None  # measured by this project; None: not trained here

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that are trained, one for each annotation file of a split."""
        return tuple(DEEPFASHION2) if self.category == "all" else (self.category,)

    @property
    def sigma(self) -> float:
        """Of the target Gaussians, cells."""
        return self.schedule.sigma

    @property
    def metrics(self) -> dict[str, float]:
        """The published figures; empty where there are none."""
        return self.published.metrics() if self.published else {}

    def declared(self) -> Recipe:
        """The recipe that the configuration's text describes, where that isn't the one that ran.

        The three ``hrnet_w48_udp`` configurations declare the UDP codec and crop, but mmengine resolves the model's
        decoder and the data pipelines in their base file, so what ran is plain ``msra``; only the flip test without a
        shift took effect. Plain msra is therefore the default here; this one is for trying the other reading on real
        data, or for training what was meant. Other recipes return themselves.
        """
        if not self.declares_udp:
            return self
        return replace(self, codec="udp", refinement="dark_udp", flip_shift=False)

    def as_mmpose(self) -> Recipe:
        """The recipe with MMPose's loss to the letter: divided by all outputs of the network, labelled or not.

        For one category of DeepFashion2 that is 7.5 to 37 times smaller than ``masked``. Adam hardly notices, since it
        divides by the gradient's size; the values in a log are comparable with MMPose's only this way.
        """
        return replace(self, schedule=replace(self.schedule, loss="mmpose", foreground=0.0))

    def spec(self) -> ModelSpec:
        """The exported model's ModelSpec: the K landmarks; no metrics, since those belong to weights."""
        every = self.category == "all"
        return ModelSpec(
            name=self.name,
            input_size=self.input_size,
            heatmap_size=self.heatmap_size,
            keypoint_names=self.landmarks.keypoint_names,
            flip_indices=self.landmarks.flip_indices,
            skeleton=self.landmarks.skeleton,
            colors=self.landmarks.colors,
            codec=self.codec,
            refinement=self.refinement,
            blur_kernel=self.blur_kernel,
            flip_shift=self.flip_shift,
            mean=self.mean,
            std=self.std,
            padding=self.padding,
            category="" if every else self.category,
            categories={name: DEEPFASHION2[name].channels for name in self.categories} if every else {},
        )
