"""The trainer: loss, schedule, resume, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.errors import InputError
from edgepose.training.coco import Annotation, load_coco
from edgepose.training.dataset import LandmarkDataset
from edgepose.training.garments import garment_spec
from edgepose.training.synthesize import synthesize
from edgepose.training.train import EpochSampler, Schedule, Trainer, heatmap_loss

SPEC = garment_spec((64, 64))
SCHEDULE = Schedule(epochs=3, batch_size=4, learning_rate=5e-3, warmup_steps=2, evaluate_every=1, extra_first=4)


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    folder = tmp_path_factory.mktemp("garments")
    list(synthesize(folder, 16, seed=1, size=(120, 160), workers=1))
    return load_coco(folder / "synthetic.json", 8)


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, 2, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 5, 2, 2)
    )


def trainer(annotations: list[Annotation], folder: Path, schedule: Schedule = SCHEDULE) -> Trainer:
    dataset = LandmarkDataset(annotations, SPEC)
    return Trainer(small_network(), SPEC, dataset, annotations[:4], schedule, folder, real=8, workers=0)


def silent(_: str) -> None: ...


def test_the_loss_leaves_out_what_is_not_labelled() -> None:
    predicted, target = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    weights = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    labelled = [(0, 0), (0, 2), (1, 2)]
    expected = np.mean([float(((predicted[i] - target[i]) ** 2).mean()) for i in labelled])
    assert float(heatmap_loss(predicted, target, weights)) == pytest.approx(expected, rel=1e-5)  # float32 sums
    assert float(heatmap_loss(predicted, target, torch.zeros(2, 3))) == 0
    assert float(heatmap_loss(predicted, target, weights, foreground=3.0)) > expected


def test_the_loss_falls_and_averaged_weights_are_kept(annotations: list[Annotation], tmp_path: Path) -> None:
    run = trainer(annotations, tmp_path, replace(SCHEDULE, epochs=8))
    lines: list[str] = []
    run.fit(lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]  # seen 0.35; a trainer that does not step stays at 1
    kept = torch.load(tmp_path / "last.pt", weights_only=True)["state_dict"]
    assert all((kept[name] == value).all() for name, value in run.averaged.items())
    assert any((kept[name] != value).any() for name, value in run.model.state_dict().items())


def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(annotations: list[Annotation], tmp_path: Path) -> None:
    whole = trainer(annotations, tmp_path / "whole")
    whole.fit(silent)

    stopped = trainer(annotations, tmp_path / "stopped")

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.fit(stop)
    resumed = trainer(annotations, tmp_path / "stopped")
    assert resumed.resume()
    assert resumed.epoch == 1  # epoch 2 was not saved yet: it is done again
    resumed.fit(silent)
    for name, value in whole.averaged.items():
        assert torch.equal(value, resumed.averaged[name]), name


def test_resume_refuses_another_schedule(annotations: list[Annotation], tmp_path: Path) -> None:
    assert not trainer(annotations, tmp_path).resume()
    trainer(annotations, tmp_path).fit(silent)
    with pytest.raises(InputError, match="another schedule"):
        trainer(annotations, tmp_path, replace(SCHEDULE, learning_rate=1.0)).resume()


def test_a_loss_that_is_not_finite_stops_the_run(annotations: list[Annotation], tmp_path: Path) -> None:
    run = trainer(annotations, tmp_path)
    with torch.no_grad():
        run.model[0].weight.fill_(float("nan"))
    with pytest.raises(InputError, match="lower the learning rate"):
        run.fit(silent)


def test_an_epoch_holds_every_real_sample_once_and_the_extras_of_the_schedule() -> None:
    sampler = EpochSampler(10, 50, Schedule(epochs=5, extra_first=40, extra_last=0))
    for epoch, extras in enumerate((40, 30, 20, 10, 0)):
        sampler.epoch = epoch
        keys = list(sampler)
        assert len(keys) == len(sampler) == 10 + extras
        assert {e for e, _ in keys} == {epoch}
        indices = [i for _, i in keys]
        assert len(set(indices)) == len(indices)
        assert set(range(10)) <= set(indices)


def test_the_rate_warms_up_and_falls_along_a_cosine(annotations: list[Annotation], tmp_path: Path) -> None:
    run = trainer(annotations, tmp_path, replace(SCHEDULE, warmup_steps=10, learning_rate=1.0, final_rate=0.1))
    rates = [run.rate(step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)


def test_data_that_do_not_fill_a_batch_are_refused(annotations: list[Annotation], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not fill one batch"):
        trainer(annotations, tmp_path, replace(SCHEDULE, batch_size=9))


def test_resume_refuses_another_model(annotations: list[Annotation], tmp_path: Path) -> None:
    trainer(annotations, tmp_path).fit(silent)
    other = replace(SPEC, name="another")
    dataset = LandmarkDataset(annotations, other)
    with pytest.raises(InputError, match="another model"):
        Trainer(small_network(), other, dataset, annotations[:4], SCHEDULE, tmp_path, real=8, workers=0).resume()
