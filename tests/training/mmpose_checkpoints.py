"""Checkpoints with the structure of those that MMPose 0.x (mmcv) and 1.x (mmengine) write, other packages' objects
included. Their classes live in modules that exist only while a file is written."""

from __future__ import annotations

import contextlib
import sys
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch

from edgepose.training.recipes import Recipe


def filled(name: str, value: torch.Tensor) -> torch.Tensor:
    """The reference's weights: random numbers seeded by the parameter's name (models.json, fill_recipe)."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = tuple(value.shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros_like(value)
    if name.endswith("running_var"):
        array = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        array = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 4:
        deconvolution = "deconv_layers" in name
        gain, fan = (4.0, shape[0] * shape[2] * shape[3] / 4) if deconvolution else (0.75, np.prod(shape[1:]))
        array = rng.standard_normal(shape) * np.sqrt(gain / fan)
    else:
        array = rng.uniform(0.5, 1.0, shape)
    return torch.from_numpy(np.asarray(array, np.float32))


def write_mmpose_0(path: Path, state: dict[str, torch.Tensor], recipe: Recipe, *, legacy: bool = True) -> None:
    """As mmcv's save_checkpoint does, with MMPose 0.x's meta and Adam's state."""
    renamed = OrderedDict((name.replace("head.", "keypoint_head.", 1), value) for name, value in state.items())
    renamed._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    content = {
        "meta": {
            "env_info": "sys.platform: linux\nPyTorch: 1.6.0",
            "config": config(recipe),
            "seed": None,
            "exp_name": "res50.py",
            "mmpose_version": "0.10.0+1d2b9a5",
            "epoch": 210,
            "iter": 50_190,
            "hook_msgs": {"best_score": np.float64(0.578), "best_ckpt": "best_AUC.pth"},
            "mmcv_version": "1.2.4",
            "time": "Sun Jan 24 11:21:33 2021",
        },
        "state_dict": renamed,
        "optimizer": optimizer_state(state),
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def write_mmpose_1(
    path: Path, state: dict[str, torch.Tensor], recipe: Recipe, *, averaged: dict[str, torch.Tensor] | None = None
) -> None:
    """As mmengine's Runner.save_checkpoint does; `averaged`: EMAHook was on, and these are the averages."""
    with mmengine() as modules:
        history = modules["mmengine.logging.history_buffer"].HistoryBuffer
        configuration = modules["mmengine.config.config"].ConfigDict
        data_set = {
            "dataset_name": f"deepfashion_{recipe.category}",
            "num_keypoints": recipe.num_outputs,
            "flip_indices": list(recipe.landmarks.flip_indices),
            "keypoint_colors": np.full((recipe.num_outputs, 3), 128, np.uint8),
            "sigmas": np.array([]),
            "joint_weights": np.ones((recipe.num_outputs, 1), np.float32),
        }
        content: dict[str, Any] = {
            "meta": {
                "cfg": config(recipe),
                "seed": 21,
                "experiment_name": "td-hm_20230810_121212",
                "time": "20230810_203344",
                "mmengine_version": "0.8.2",
                "dataset_meta": data_set,
                "epoch": 210,
                "iter": 50_190,
            },
            "state_dict": OrderedDict(averaged or state),
            "message_hub": {
                "log_scalars": OrderedDict((f"train/{n}", history(range(500))) for n in ("loss", "lr", "acc_pose")),
                "runtime_info": OrderedDict(
                    epoch=209, best_score=np.float64(0.6), cfg=configuration(model={"type": "x"})
                ),
                "resumed_keys": OrderedDict({"train/loss": True}),
            },
            "optimizer": optimizer_state(state),
            "param_schedulers": [{"milestones": Counter({170: 1, 200: 1}), "last_step": 210}],
        }
        if averaged is not None:
            content["ema_state_dict"] = OrderedDict((f"module.{name}", value) for name, value in state.items())
            content["ema_state_dict"]["steps"] = torch.tensor(50_190)
        torch.save(content, path)


def config(recipe: Recipe) -> str:
    """The lines of a configuration that an import looks at."""
    return f"data_root = 'data/'\ntrain_dataloader = dict(dataset=dict(ann_file='{recipe.train.annotations[0]}'))\n"


def optimizer_state(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Adam's, for the first few parameters only: it is not to be read."""
    few = dict(list(state.items())[:3])
    moments = {i: {"step": 9, "exp_avg": v.clone(), "exp_avg_sq": v.clone()} for i, v in enumerate(few.values())}
    return {"state": moments, "param_groups": [{"lr": 5e-6, "betas": (0.9, 0.999), "params": list(moments)}]}


@contextlib.contextmanager
def mmengine() -> Iterator[dict[str, ModuleType]]:
    """The two classes of mmengine that its checkpoints have objects of; they keep their history as it does."""

    class HistoryBuffer:
        _statistics_methods: ClassVar[dict[str, Any]] = {}

        def __init__(self, values: Any) -> None:
            self.max_length = 1_000_000
            self._statistics_methods.setdefault("mean", HistoryBuffer.mean)
            self._log_history = np.array(values, np.float64)
            self._count_history = np.ones(len(values))

        def mean(self) -> float:
            return float(self._log_history.mean())

        def __getstate__(self) -> dict[str, Any]:
            return {**self.__dict__, "statistics_methods": self._statistics_methods}

    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    HistoryBuffer.mean.__module__ = "mmengine.logging.history_buffer"

    class ConfigDict(dict):  # type: ignore[type-arg]
        def __reduce_ex__(self, protocol: Any) -> Any:
            return type(self), (dict(self),), None, None, iter(self.items())

    classes = {"mmengine.logging.history_buffer": HistoryBuffer, "mmengine.config.config": ConfigDict}
    modules = {name: ModuleType(name) for name in ("mmengine", "mmengine.logging", "mmengine.config", *classes)}
    for module, cls in classes.items():
        cls.__module__, cls.__qualname__ = module, cls.__name__
        setattr(modules[module], cls.__name__, cls)
    sys.modules.update(modules)
    try:
        yield modules
    finally:
        for name in modules:
            del sys.modules[name]
