"""Batches: images as the runtime makes them, targets as the codec does, and crops on the (emulated) GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from cuda_on_cpu.cupy_on_cpu import view_of

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")
from torch.utils.data import DataLoader

from edgepose.errors import InputError
from edgepose.kernels._call import call_views
from edgepose.kernels.reference import crop_warp
from edgepose.spec import ModelSpec
from edgepose.training import batches, codecs
from edgepose.training.batches import Batches, crop_frames
from edgepose.training.coco import Annotation
from edgepose.training.dataset import FrameSample, LandmarkDataset, Sample, collate
from edgepose.training.fashion import DEEPFASHION
from edgepose.training.mmpose_transforms import MMPoseAugmentation
from edgepose.training.transforms import Augmentation

FULL = DEEPFASHION["full"]
SPEC = ModelSpec(
    name="test",
    input_size=(48, 64),
    heatmap_size=(12, 16),
    keypoint_names=FULL.keypoint_names,
    flip_indices=FULL.flip_indices,
)
SIZES = [(90, 121), (64, 64), (203, 150), (31, 40)]  # (w, h) px: another for each frame, none a multiple of the others


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    """Five garments in four photos of different sizes; the last box reaches into a corner."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    made = []
    for number, (w, h) in enumerate([*SIZES, SIZES[2]]):
        path = folder / f"{w}x{h}.png"
        if not path.exists():
            cv2.imwrite(str(path), rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        box = np.float32([0.1 * w, 0.2 * h, 0.8 * w, 0.9 * h] if number < 4 else [0.7 * w, 0, w - 1, 0.3 * h])
        points = rng.uniform(0, (w, h), (8, 2)).astype(np.float32)
        visible = np.float32([1, 1, 0, 1, 0, 0, 1, 1])
        points[visible == 0] = np.nan
        made.append(Annotation(path, (w, h), box, points, visible, "upper"))
    return made


def test_images_are_the_runtimes_and_targets_the_codecs(annotations: list[Annotation]) -> None:
    dataset = LandmarkDataset(annotations, SPEC, absent={"upper": (4, 5)})
    batch = collate([dataset[i] for i in range(5)])
    images, heatmaps, weights = Batches(SPEC, "cpu", absent_weight=0.25)(batch)
    assert images.is_contiguous(memory_format=torch.channels_last)
    for i, annotation in enumerate(annotations):
        frame = cv2.imread(str(annotation.image))
        affine = batches_affine(annotation)
        expected = crop_warp(frame, affine, SPEC.input_size, sampling="opencv4", mean=SPEC.mean, std=SPEC.std)[0]
        np.testing.assert_array_equal(images[i].numpy(), expected)
        maps, weight = codecs.encode(
            batch.keypoints[i].numpy(), annotation.visible, codec="msra", input_size=(48, 64), heatmap_size=(12, 16)
        )
        weight[[4, 5]] = 0.25
        np.testing.assert_allclose(heatmaps[i].numpy(), maps, atol=3e-7, rtol=0)  # rounding: see test_targets.py
        np.testing.assert_array_equal(weights[i].numpy(), weight)
        assert not heatmaps[i, 4:6].any()
    assert (weights[:, 2] == 0).all()  # merely not labelled


def batches_affine(annotation: Annotation) -> np.ndarray:
    from edgepose.geometry import crop_affines

    return crop_affines(annotation.box[None], SPEC.input_size, SPEC.codec, SPEC.padding)


class Borrowed:
    """A tensor over the stand-in GPU's memory, offered as torch offers a CUDA tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": tensor.numpy().dtype.str,
            "data": (tensor.data_ptr(), False),
            "strides": None,
            "version": 2,
        }


@pytest.fixture
def torch_on_stand_in(cupy_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch allocates what crop_frames uses from the stand-in's memory; its kernels run when torch's stream is left."""
    kept = []  # the stand-in frees an array's memory with the array, and then refuses every kernel that touches it

    def empty(*shape: int, device: Any, dtype: Any = np.float32) -> torch.Tensor:
        kept.append(cupy_on_cpu.zeros(shape, dtype))
        cupy_on_cpu.cuda.Device().synchronize()
        return torch.from_numpy(view_of(kept[-1]))

    @contextmanager
    def stream(cupy: Any, device: torch.device) -> Iterator[None]:
        yield
        cupy.cuda.Device().synchronize()

    monkeypatch.setattr(batches.torch, "empty", empty)

    def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        return empty(*tensor.shape, device=device, dtype=tensor.numpy().dtype).copy_(tensor)

    monkeypatch.setattr(batches, "upload", upload)
    monkeypatch.setattr(batches, "_shared", lambda cupy, tensor: cupy.asarray(Borrowed(tensor)))
    monkeypatch.setattr(batches, "_torch_stream", stream)
    return cupy_on_cpu


@pytest.mark.parametrize("sampling", ["opencv4", "area"])
@pytest.mark.parametrize(
    "augmentation", [None, MMPoseAugmentation(), MMPoseAugmentation(flip=1, rotation_probability=1)]
)
def test_gpu_crops_are_the_cpus_bit_for_bit(
    torch_on_stand_in: Any, annotations: list[Annotation], augmentation: Any, sampling: Any
) -> None:
    spec = replace(SPEC, sampling=sampling)
    on_cpu = LandmarkDataset(annotations, spec, augmentation=augmentation, seed=3)
    on_gpu = LandmarkDataset(annotations, spec, augmentation=augmentation, seed=3, gpu_crops=True)
    for epoch in range(2):
        plain, frames = (collate([data[epoch, i] for i in range(5)]) for data in (on_cpu, on_gpu))
        assert isinstance(frames, FrameSample)
        for name in ("keypoints", "visible", "absent"):
            assert torch.equal(getattr(plain, name), getattr(frames, name))
        expected = Batches(spec, "cpu")(plain)[0]
        crops = crop_frames(frames, spec, torch.device("cpu"))
        assert torch.equal(crops, expected)
        assert crops.any()


def test_only_the_part_of_a_frame_that_a_crop_sees_travels(annotations: list[Annotation]) -> None:
    corner = LandmarkDataset(annotations, SPEC, gpu_crops=True)[4]
    h, w, _ = corner.pixels.shape
    assert w * h < 0.5 * 203 * 150
    batch = collate([corner, corner])
    assert batch.pixels.numel() % 256 == 0
    for i, start in enumerate((0, batch.pixels.numel() // 2)):
        assert call_views(batch.call[i].numpy(), 1)[1]["pixels"] == start
        assert torch.equal(batch.pixels[start : start + corner.pixels.numel()], corner.pixels.flatten())


def test_a_crop_that_sees_nothing_of_its_frame(torch_on_stand_in: Any, annotations: list[Annotation]) -> None:
    away = replace(annotations[0], box=np.float32([500, 500, 560, 580]))
    dataset = LandmarkDataset([away, annotations[1]], SPEC, gpu_crops=True)
    crops = crop_frames(collate([dataset[0], dataset[1]]), SPEC, torch.device("cpu"))
    black = (torch.zeros(3) - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std)
    assert torch.equal(crops[0], black[:, None, None].expand(3, 64, 48))
    assert crops[1].std() > 0.5
    alone = crop_frames(collate([dataset[0]]), SPEC, torch.device("cpu"))
    assert torch.equal(alone[0], crops[0])


def test_gpu_crops_want_a_gpu_and_an_affine(annotations: list[Annotation]) -> None:
    with pytest.raises(InputError, match="an affine alone"):
        LandmarkDataset(annotations, SPEC, augmentation=Augmentation(), gpu_crops=True)
    batch = collate([LandmarkDataset(annotations, SPEC, gpu_crops=True)[0]])
    with pytest.raises(InputError, match="needs a CUDA device, and this trains on cpu"):
        Batches(SPEC, "cpu")(batch)


@pytest.mark.parametrize("gpu_crops", [False, True])
def test_workers_make_what_the_main_process_makes(annotations: list[Annotation], gpu_crops: bool) -> None:
    dataset = LandmarkDataset(annotations, SPEC, augmentation=MMPoseAugmentation(), seed=1, gpu_crops=gpu_crops)
    loaded = [list(DataLoader(dataset, 3, num_workers=n, collate_fn=collate)) for n in (0, 2)]
    assert [len(batches) for batches in loaded] == [2, 2]
    for here, there in zip(*loaded, strict=True):
        assert type(here) is type(there) is (FrameSample if gpu_crops else Sample)
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_a_landmark_that_is_visible_but_not_finite_is_refused(annotations: list[Annotation]) -> None:
    broken = replace(annotations[0], visible=np.ones(8, np.float32))
    with pytest.raises(InputError, match="keypoint 2 of crop 1 is visible but not finite"):
        Batches(SPEC, "cpu")(collate([LandmarkDataset([annotations[1], broken], SPEC)[i] for i in range(2)]))
