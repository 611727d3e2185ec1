"""The trainer: that it learns, accumulates, averages, and what it refuses and reports."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

import small_run
from small_run import CPU, SCHEDULE, SPEC, make_trainer, network, silent

from edgepose.errors import InputError
from edgepose.training import checkpointing, progress
from edgepose.training.learner import arithmetic
from edgepose.training.sampling import EpochOrder
from edgepose.training.schedule import Schedule


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    small_run.write_photos(folder)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(progress, "plot", lambda _: b"")  # half of a small run's time


PLOT = progress.plot


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_the_loss_falls_and_what_happened_is_written_down(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "plot", PLOT)
    schedule = replace(SCHEDULE, epochs=12, evaluate_every=4, extra_first=0, extra_last=0, learning_rate=0.01)
    run = make_trainer(data, tmp_path, schedule, augmentation=None)
    lines: list[str] = []
    run.fit(lines.append)
    losses = [record["loss"] for record in records(tmp_path, "epoch")]
    assert len(losses) == len(lines) == len(run.history) == 12
    assert losses[-1] < 0.3 * losses[0]  # seen 0.08; a trainer that does not step stays at 1
    assert lines[3].startswith("epoch 4/12 step 8 loss ")
    assert "AUC" in lines[3]
    assert "images/s, data wait" in lines[3]
    assert "AUC" not in lines[4]
    steps = records(tmp_path, "step")
    assert [step["step"] for step in steps] == [1, 20]
    assert steps[0]["learning_rate"] == pytest.approx(1e-5)
    assert steps[1]["gradient_norm"] > 0
    assert 0 <= steps[1]["data_wait"] <= 1
    start = records(tmp_path, "start")[0]
    assert start["schedule"]["learning_rate"] == 0.01
    for name in ("batch.png", "loss.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_tensorboard_gets_scalars_and_pictures(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_trainer(data, tmp_path, replace(SCHEDULE, epochs=1)).fit(silent)
    events = EventAccumulator(str(tmp_path)).Reload()
    names = {"train/loss", "train/learning_rate", "train/gradient_norm", "train/images_per_second", "train/data_wait"}
    assert {*names, "epoch/loss", "val/AUC", "val/PCK@0.2"} <= set(events.Tags()["scalars"])
    assert [image.step for image in events.Images("batch")] == [1, 2]
    assert events.Scalars("val/AUC")[0].value == pytest.approx(records(tmp_path, "epoch")[0]["metrics"]["AUC"])


def test_a_batch_is_drawn_as_the_network_sees_it() -> None:
    pixels = torch.full((1, 3, 64, 64), 100.0)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    heatmaps = torch.zeros(1, 2, 16, 16)
    heatmaps[0, :, 8, 4] = 1.0
    images = (pixels - mean) / std
    seen = progress.draw_batch(images, heatmaps, torch.tensor([[1.0, 0.0]]), SPEC)
    blind = progress.draw_batch(images, heatmaps, torch.zeros(1, 2), SPEC)
    assert seen.shape == (64, 64, 3)
    assert (blind == 100).all()  # channels that the loss does not see are not drawn
    red = (seen[..., 0] > 150) & (seen[..., 1] < 100)
    assert red[30:38, 14:22].any()
    assert not red[:20].any()


def test_the_average_is_evaluated_and_kept(data: Path, tmp_path: Path) -> None:
    run = make_trainer(data, tmp_path, replace(SCHEDULE, epochs=2, average=0.9))
    expected = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
    step = run.learner.step

    def follow(*arguments: Any, **options: Any) -> Any:
        result = step(*arguments, **options)
        decay = min(0.9, (1 + options["step"] + 1) / (10 + options["step"] + 1))
        for name, value in run.model.state_dict().items():
            expected[name] = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
            )
        return result

    run.learner.step = follow
    run.fit(silent)
    for name, value in run.averaged.items():
        torch.testing.assert_close(value, expected[name])
    assert any(not torch.equal(value, run.averaged[name]) for name, value in run.model.state_dict().items())
    plain_run = make_trainer(data, tmp_path / "plain", replace(SCHEDULE, epochs=1, average=None))
    plain_run.fit(silent)
    assert all(torch.equal(value, plain_run.averaged[name]) for name, value in plain_run.model.state_dict().items())


def test_weights_can_be_given_to_evaluate(data: Path, tmp_path: Path) -> None:
    run = make_trainer(data, tmp_path)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    first = run.evaluate().metrics()
    run.averaged = {name: torch.zeros_like(value) for name, value in run.averaged.items()}
    assert run.evaluate().metrics() != first
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert run.model.training


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(data: Path, tmp_path: Path) -> None:
    run = make_trainer(data, tmp_path, execution=replace(CPU, micro_batch=2))
    run.fit(silent)
    run = make_trainer(data, tmp_path / "bad", execution=replace(CPU, micro_batch=2))
    position = (1, 0)  # epoch, step
    culprits = [str(run.dataset.annotations[i].image) for _, i in run.batches.of_step(*position)[1]]
    batches, calls = run.learner.batches, [0]

    def poisoned(sample: Any) -> Any:
        images, heatmaps, weights = batches(sample)
        if run.epoch == 1:
            calls[0] += 1
            if calls[0] == 2:  # the second micro-batch
                images = images * math.nan
        return images, heatmaps, weights

    run.learner.batches = poisoned
    with pytest.raises(InputError, match=r"the loss is nan at step 4 \(epoch 2, learning rate 0\.00") as caught:
        run.fit(silent)
    message = str(caught.value)
    assert all(name in message for name in culprits)
    assert f"The last good state is {tmp_path / 'bad' / 'last.pt'}" in message
    bad = torch.load(tmp_path / "bad" / "bad_batch.pt", weights_only=True)
    assert (bad["step"], [part["files"] for part in bad["parts"]]) == (3, [culprits])
    assert bad["parts"][0]["crop"].shape == (2, 64, 64, 3)
    good = torch.load(tmp_path / "bad" / "last.pt", weights_only=True)
    assert good["step"] == 3
    assert all(value.isfinite().all() for value in good["trained"].values())


def test_deterministic_runs_are_equal_to_the_bit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = replace(CPU, deterministic=True)
    states = []
    for name in ("one", "two"):
        torch.rand(len(states))  # whatever was drawn before
        run = make_trainer(data, tmp_path / name, execution=execution)
        torch.rand(1 + len(states))
        run.model[3].register_forward_hook(
            lambda *_: states.append(torch.are_deterministic_algorithms_enabled()) or None
        )
        run.fit(silent)
    one, two = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("one", "two"))
    for name, value in one["trained"].items():
        assert torch.equal(value, two["trained"][name]), name
    assert one["history"] == two["history"]
    assert all(states)
    assert not torch.are_deterministic_algorithms_enabled()  # as it was before

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with (
        pytest.raises(InputError, match="CUBLAS_WORKSPACE_CONFIG=:4096:8"),
        arithmetic(execution, torch.device("cuda")),
    ):
        pass


def test_workers_change_nothing(data: Path, tmp_path: Path) -> None:
    runs = []
    for workers in (0, 2):
        run = make_trainer(data, tmp_path / str(workers), execution=replace(CPU, workers=workers))
        run.fit(silent)
        runs.append(run)
    assert all(torch.equal(value, runs[1].weights()[name]) for name, value in runs[0].weights().items())


def test_an_image_that_cannot_be_read_is_named_without_a_workers_traceback(data: Path, tmp_path: Path) -> None:
    run = make_trainer(data, tmp_path, execution=replace(CPU, workers=1))
    small_run._break(run)
    with pytest.raises(InputError, match=r"gone\.png") as caught:
        run.fit(silent)
    assert "Traceback" not in str(caught.value)


def test_an_epoch_holds_every_real_sample_once_and_the_extras_of_the_schedule() -> None:
    order = EpochOrder(10, 50, Schedule(epochs=5, extra_first=40, extra_last=0, batch_size=8))
    orders = [order.indices(epoch).tolist() for epoch in range(5)]
    for epoch, extras in enumerate((40, 30, 20, 10, 0)):
        assert len(orders[epoch]) == len(set(orders[epoch])) == 10 + extras
        assert set(range(10)) <= set(orders[epoch]) <= set(range(60))
        assert order.steps(epoch) == (10 + extras) // 8
    assert order.total_steps() == 6 + 5 + 3 + 2 + 1
    assert order.indices(0).tolist() == orders[0]
    assert orders[4] != list(range(10))


def test_what_cannot_be_trained_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="10 samples do not fill one batch of 11"):
        make_trainer(data, tmp_path, replace(SCHEDULE, batch_size=11))
    with pytest.raises(InputError, match=r"micro-batches of 3 do not fill them: expected one of \[1, 2, 4\]"):
        make_trainer(data, tmp_path, execution=replace(CPU, micro_batch=3))
    with pytest.raises(InputError, match="expected 0 to 16, got 17"):
        make_trainer(data, tmp_path, real=17)
    frozen = network().requires_grad_(False)
    with pytest.raises(InputError, match="every parameter of the network is frozen"):
        make_trainer(data, tmp_path, model=frozen)
    run = make_trainer(data, tmp_path)
    run.validation = []
    with pytest.raises(InputError, match="validation is empty"):
        run._check(10)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        make_trainer(data, tmp_path / "file").fit(silent)


def test_a_full_disk_leaves_the_last_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_trainer(data, tmp_path)
    write, calls = os.fdopen, [0]

    class Full:
        """A file on a disk without room."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, _: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(descriptor: int, mode: str) -> Any:
        file = write(descriptor, mode)
        calls[0] += 1
        return Full(file) if calls[0] > 2 else file  # batch.png and the first last.pt fit

    monkeypatch.setattr("edgepose.files.os.fdopen", opened)
    with pytest.raises(
        InputError, match=r"the disk is full .*Make room.* is whole: the same command goes on from there"
    ):
        run.fit(silent)
    monkeypatch.undo()
    assert checkpointing.load(tmp_path / "last.pt")["step"] == 2
    assert not list(tmp_path.glob("*.tmp"))
    again = make_trainer(data, tmp_path)
    assert again.resume()
    again.fit(silent)
    assert again.step == 9


def test_log_lines_after_the_last_checkpoint_are_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        {"event": "step", "step": 20},
        {"event": "epoch", "epoch": 1, "step": 30},
        {"event": "step", "step": 40},
        {"event": "epoch", "epoch": 2, "step": 60},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')
    progress._trim(path, 60, 1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:3]
    progress._trim(path, 39, 1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:2]
