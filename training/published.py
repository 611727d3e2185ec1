"""The 19 fashion models of MMPose's zoo: their tables, and what all of their configurations share.

Facts from MMPose 1.3.2 (759b39c13), configs/fashion_2d_keypoint, resolved as mmengine resolves them.
"""

from __future__ import annotations

from dataclasses import replace

from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2, DEEPFASHION2_CHANNELS
from edgepose.training.recipe import Figures, Recipe, Split
from edgepose.training.schedule import Schedule

__all__ = ["PRETRAINED", "SCHEDULE", "deepfashion2_split", "deepfashion_split", "published_recipes"]

# The optimiser is Adam without weight decay; the loss counts labelled channels only, see Recipe.as_mmpose.
SCHEDULE = Schedule(
    epochs=210,
    optimizer="adam",
    learning_rate=5e-4,
    weight_decay=0.0,
    warmup_steps=500,
    warmup_factor=0.001,
    milestones=(170, 200),
    gamma=0.1,
    clip_norm=None,
    average=None,
    loss="masked",
    foreground=0.0,
    evaluate_every=10,
    flip_test=True,
)

_DOWNLOADS = "https://download.openmmlab.com/mmpose"
PRETRAINED = {
    "resnet18": "torchvision://resnet18",
    "resnet50": "torchvision://resnet50",
    "hrnet_w32": f"{_DOWNLOADS}/pretrain_models/hrnet_w32-36af842e.pth",
    "hrnet_w48": f"{_DOWNLOADS}/pretrain_models/hrnet_w48-8ef0771d.pth",
}

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


def published_recipes() -> list[Recipe]:
    """The 19, in the order of MMPose's tables."""
    return [
        *(_deepfashion(category, row, hrnet=False) for category, row in _DEEPFASHION_RESNET50.items()),
        *(_deepfashion(category, row, hrnet=True) for category, row in _DEEPFASHION_HRNET_W48_UDP.items()),
        *(_deepfashion2(category, row) for category, row in _DEEPFASHION2_RESNET50.items()),
    ]


def deepfashion_split(category: str, part: str) -> Split:
    """MMPose's data/fld: part is train, val or test."""
    return Split((f"annotations/fld_{category}_{part}.json",), "img")


def deepfashion2_split(categories: tuple[str, ...], part: str) -> Split:
    """MMPose's data/deepfasion2: part is train or validation."""
    return Split(tuple(f"{part}/deepfashion2_{category}_{part}.json" for category in categories), f"{part}/image")


def _deepfashion(category: str, row: tuple[float, float, float, int, str], *, hrnet: bool) -> Recipe:
    pck, auc, epe, base_batch_size, checkpoint = row
    gpus, batch_per_gpu = 8, 32 if hrnet else 64
    config = (
        f"td-hm_{'hrnet-w48_udp' if hrnet else 'res50'}_{gpus}xb{batch_per_gpu}-210e_deepfashion_{category}-256x192"
    )
    architecture = "hrnet_w48" if hrnet else "resnet50"
    return Recipe(
        name=f"deepfashion/{category}/{'hrnet_w48_udp' if hrnet else 'resnet50'}",
        source=f"MMPose 1.3.2, deepfashion/{config}",
        architecture=architecture,
        landmarks=DEEPFASHION[category],
        num_outputs=len(DEEPFASHION[category].keypoint_names),
        dataset="DeepFashion",
        category=category,
        train=deepfashion_split(category, "train"),
        validation=deepfashion_split(category, "val"),
        test=deepfashion_split(category, "test"),
        pretrained=PRETRAINED[architecture],
        schedule=replace(SCHEDULE, batch_size=gpus * batch_per_gpu),
        gpus=gpus,
        batch_per_gpu=batch_per_gpu,
        base_batch_size=base_batch_size,
        declares_udp=hrnet,
        flip_shift=not hrnet,
        published=Figures(round(pck / 100, 3), round(auc / 100, 3), epe),
        checkpoint_url=f"{_DOWNLOADS}/v1/fashion_2d_keypoint/topdown_heatmap/deepfashion/{config}"
        f"-{checkpoint}_20230810.pth"
        if hrnet
        else f"{_DOWNLOADS}/fashion/resnet/res50_deepfashion_{category}_256x192-{checkpoint}_20210124.pth",
    )


def _deepfashion2(category: str, row: tuple[float, float, float, int, str]) -> Recipe:
    pck, auc, epe, gpus, checkpoint = row
    batch_per_gpu = 64
    validation = deepfashion2_split((category,), "validation")
    return Recipe(
        name=f"deepfashion2/{category}/resnet50",
        source=f"MMPose 1.3.2, deepfashion2/td-hm_res50_{gpus}xb{batch_per_gpu}-210e_deepfasion2-"  # MMPose's spelling
        f"{category.replace('_', '-')}-256x192",
        architecture="resnet50",
        landmarks=DEEPFASHION2[category],
        num_outputs=DEEPFASHION2_CHANNELS,
        dataset="DeepFashion2",
        category=category,
        train=deepfashion2_split((category,), "train"),
        validation=validation,
        test=validation,
        pretrained=PRETRAINED["resnet50"],
        schedule=replace(SCHEDULE, batch_size=gpus * batch_per_gpu),
        gpus=gpus,
        batch_per_gpu=batch_per_gpu,
        base_batch_size=gpus * batch_per_gpu,
        published=Figures(pck, auc, epe),
        checkpoint_url=f"{_DOWNLOADS}/fashion/resnet/res50_deepfashion2_{category}_256x192-{checkpoint}_20221208.pth",
    )
