"""The 19 fashion recipes of MMPose's model zoo, as they really ran.

>>> from edgepose.training.recipes import RECIPES
>>> recipe = RECIPES["deepfashion2/trousers/resnet50"]
>>> recipe.architecture, recipe.metrics["PCK@0.2"], recipe.spec().num_keypoints
('resnet50', 0.973, 14)

A recipe reads top to bottom: what is learnt, on what, how, and what came out. Every default below is shared by all 19.
Facts from MMPose 1.3.2 (759b39c13): configs/fashion_2d_keypoint, resolved as mmengine resolves them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from edgepose.errors import InputError
from edgepose.spec import IMAGENET_MEAN, IMAGENET_STD, Codec, ModelSpec, Refinement
from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2, DEEPFASHION2_CHANNELS, LandmarkSet

__all__ = ["RECIPES", "Recipe", "find"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that makes one model: architecture, data, training, result.

    The published MMPose checkpoint of a recipe loads into ``models.create(recipe.architecture, recipe.num_outputs)``.
    """

    name: str

    # What is learnt
    architecture: str  # a name of edgepose.training.models
    pretrained: str  # where MMPose's backbone weights came from
    num_outputs: int  # heatmaps of the network: K, or 294 for DeepFashion2, of which a category uses landmarks.channels
    landmarks: LandmarkSet
    input_size: tuple[int, int] = (192, 256)  # (w, h) px
    heatmap_size: tuple[int, int] = (48, 64)  # (w, h) cells
    mean: tuple[float, float, float] = IMAGENET_MEAN  # RGB, 0–255
    std: tuple[float, float, float] = IMAGENET_STD
    codec: Codec = "msra"
    sigma: float = 2.0  # of the target Gaussians, cells
    refinement: Refinement = "shift"
    blur_kernel: int = 11  # cells; used by dark and dark_udp
    flip_test: bool = True  # the published figures average each image with its mirror image
    flip_shift: bool = True  # move the mirrored maps one cell to the right
    declares_udp: bool = False  # see `declared`

    # On what: boxes are ground truth, in training as in the tables
    dataset: Literal["DeepFashion", "DeepFashion2"]
    category: str  # upper, lower, full; or one of DeepFashion2's 13
    train_annotations: str
    val_annotations: str
    test_annotations: str
    padding: float = 1.25

    # How: augmentation. Shift, scale and rotation: a standard normal number truncated to [-1, 1], times the factor
    flip_probability: float = 0.5
    shift_factor: float = 0.16  # of the padded box
    shift_probability: float = 0.3
    scale_factor: float = 0.5  # scale 1 ± 0.5
    scale_probability: float = 1.0
    rotation_factor: float = 80.0  # degrees
    rotation_probability: float = 0.6

    # How: optimisation of the mean squared error over all heatmap cells, unlabelled landmarks weighted 0
    optimizer: Literal["adam"] = "adam"
    learning_rate: float = 5e-4
    warmup_iterations: int = 500  # linear, from warmup_factor * learning_rate
    warmup_factor: float = 0.001
    milestones: tuple[int, ...] = (170, 200)  # epochs after which the learning rate is multiplied by gamma
    gamma: float = 0.1
    epochs: int = 210
    validation_interval: int = 10  # epochs; the checkpoint with the best AUC is kept
    gpus: int  # as the config's file name says
    batch_per_gpu: int
    base_batch_size: int  # what learning_rate belongs to under --auto-scale-lr; 64, not 512, in two configs

    # What came out
    metrics: dict[str, float]  # PCK@0.2 and AUC as fractions, EPE in px of the photo; with flip test
    checkpoint_url: str

    def declared(self) -> Recipe:
        """The recipe that the config's text describes, where that isn't the one that ran.

        The three ``hrnet_w48_udp`` configs declare the UDP codec and crop, but mmengine resolves the model's decoder
        and the data pipelines in their base file, so what ran is plain ``msra``; only the flip test without a shift
        took effect. Plain msra is therefore the default here; this one is for trying the other reading on real data,
        or for training what was meant. Other recipes return themselves.
        """
        if not self.declares_udp:
            return self
        return replace(self, codec="udp", refinement="dark_udp", flip_shift=False)

    def spec(self) -> ModelSpec:
        """The exported model's ModelSpec: the category's K landmarks; no metrics, since those belong to weights."""
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
            category=self.category,
        )


def find(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the message names the closest ones.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the recipes are: {', '.join(RECIPES)}"
    raise InputError(f"unknown recipe {name!r}; {hint}")


_DOWNLOADS = "https://download.openmmlab.com/mmpose"
_RESNET50 = "torchvision://resnet50"
_HRNET_W48 = f"{_DOWNLOADS}/pretrain_models/hrnet_w48-8ef0771d.pth"

# category: (PCK@0.2 %, AUC %, EPE px, base_batch_size, checkpoint hash)
_DEEPFASHION_RESNET50 = {
    "upper": (95.4, 57.8, 16.8, 64, "41794f03"),
    "lower": (96.5, 74.4, 10.5, 64, "1292a839"),
    "full": (97.7, 66.4, 12.7, 512, "0dbd6e42"),
}
_DEEPFASHION_HRNET_W48_UDP = {
    "upper": (96.1, 60.9, 15.1, 256, "de7c0eb1"),
    "lower": (97.8, 76.1, 8.9, 256, "ddaf747d"),
    "full": (98.3, 67.3, 11.7, 256, "7ab504c7"),
}
# category: (PCK@0.2, AUC, EPE px, GPUs, checkpoint hash)
_DEEPFASHION2_RESNET50 = {
    "short_sleeved_shirt": (0.988, 0.703, 10.2, 6, "21e1c5da"),
    "long_sleeved_shirt": (0.973, 0.587, 16.6, 8, "8679e7e3"),
    "short_sleeved_outwear": (0.966, 0.408, 24.0, 8, "a04c1298"),
    "long_sleeved_outwear": (0.987, 0.517, 18.1, 8, "31fbaecf"),
    "vest": (0.981, 0.643, 12.7, 4, "4c48d05c"),
    "sling": (0.940, 0.557, 21.6, 4, "ebb2b736"),
    "shorts": (0.975, 0.682, 12.4, 3, "9ab23592"),
    "trousers": (0.973, 0.625, 14.8, 2, "3e632257"),
    "skirt": (0.952, 0.653, 16.6, 1, "09573469"),
    "short_sleeved_dress": (0.980, 0.603, 15.6, 4, "1345b07a"),
    "long_sleeved_dress": (0.976, 0.518, 20.1, 1, "87bac74e"),
    "vest_dress": (0.980, 0.600, 16.0, 1, "fb3fbd6f"),
    "sling_dress": (0.967, 0.544, 19.5, 4, "8ebae0eb"),
}


def _deepfashion(category: str, row: tuple[float, float, float, int, str], *, hrnet: bool) -> Recipe:
    pck, auc, epe, base_batch_size, checkpoint = row
    config = f"fashion_2d_keypoint/topdown_heatmap/deepfashion/td-hm_hrnet-w48_udp_8xb32-210e_deepfashion_{category}"
    return Recipe(
        name=f"deepfashion/{category}/{'hrnet_w48_udp' if hrnet else 'resnet50'}",
        architecture="hrnet_w48" if hrnet else "resnet50",
        pretrained=_HRNET_W48 if hrnet else _RESNET50,
        num_outputs=len(DEEPFASHION[category].keypoint_names),
        landmarks=DEEPFASHION[category],
        flip_shift=not hrnet,
        declares_udp=hrnet,
        dataset="DeepFashion",
        category=category,
        train_annotations=f"annotations/fld_{category}_train.json",
        val_annotations=f"annotations/fld_{category}_val.json",
        test_annotations=f"annotations/fld_{category}_test.json",
        gpus=8,
        batch_per_gpu=32 if hrnet else 64,
        base_batch_size=base_batch_size,
        metrics={"PCK@0.2": round(pck / 100, 3), "AUC": round(auc / 100, 3), "EPE": epe},
        checkpoint_url=f"{_DOWNLOADS}/v1/{config}-256x192-{checkpoint}_20230810.pth"
        if hrnet
        else f"{_DOWNLOADS}/fashion/resnet/res50_deepfashion_{category}_256x192-{checkpoint}_20210124.pth",
    )


def _deepfashion2(category: str, row: tuple[float, float, float, int, str]) -> Recipe:
    pck, auc, epe, gpus, checkpoint = row
    validation = f"validation/deepfashion2_{category}_validation.json"
    return Recipe(
        name=f"deepfashion2/{category}/resnet50",
        architecture="resnet50",
        pretrained=_RESNET50,
        num_outputs=DEEPFASHION2_CHANNELS,
        landmarks=DEEPFASHION2[category],
        dataset="DeepFashion2",
        category=category,
        train_annotations=f"train/deepfashion2_{category}_train.json",
        val_annotations=validation,
        test_annotations=validation,
        gpus=gpus,
        batch_per_gpu=64,
        base_batch_size=64 * gpus,
        metrics={"PCK@0.2": pck, "AUC": auc, "EPE": epe},
        checkpoint_url=f"{_DOWNLOADS}/fashion/resnet/res50_deepfashion2_{category}_256x192-{checkpoint}_20221208.pth",
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(_deepfashion(category, row, hrnet=False) for category, row in _DEEPFASHION_RESNET50.items()),
        *(_deepfashion(category, row, hrnet=True) for category, row in _DEEPFASHION_HRNET_W48_UDP.items()),
        *(_deepfashion2(category, row) for category, row in _DEEPFASHION2_RESNET50.items()),
    )
}
