"""Runs that are killed, stopped or resumed wrongly: the weights are those of a run that nothing happened to."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

import small_run
from small_run import CPU, SCHEDULE, SPEC, make_trainer, silent, start

from edgepose.errors import InputError
from edgepose.training import models, progress
from edgepose.training.checkpoint import load_checkpoint
from edgepose.training.models import EfficientNetLite


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    small_run.write_photos(folder)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last state of a run that nothing happened to, in a process like those that are killed."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(data, folder)
    process.join()
    assert process.exitcode == 0
    return torch.load(folder / "last.pt", weights_only=True)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "plot", lambda _: b"")  # half of a small run's time
    torch.set_num_threads(1)


def assert_same(state: Any, other: Any, where: str = "") -> None:
    """Bit for bit, through dicts and lists."""
    assert type(state) is type(other), where
    if isinstance(state, dict):
        assert state.keys() == other.keys(), where
        for name in state:
            assert_same(state[name], other[name], f"{where}/{name}")
    elif isinstance(state, (list, tuple)):
        assert len(state) == len(other), where
        for i, (one, two) in enumerate(zip(state, other, strict=True)):
            assert_same(one, two, f"{where}/{i}")
    elif isinstance(state, torch.Tensor):
        assert torch.equal(state, other), where
    else:
        assert state == other, where


def assert_same_run(folder: Path, whole: dict[str, Any]) -> None:
    state = torch.load(folder / "last.pt", weights_only=True)
    for part in (state, other := dict(whole)):
        part.pop("execution")  # the number of workers may differ
    assert_same(state, other)
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["evaluation"] == whole["evaluation"]
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if r["event"] == "epoch"] == [1, 2, 3]
    assert [r["loss"] for r in records if r["event"] == "epoch"] == [r["loss"] for r in whole["history"]]
    assert not list(folder.glob("*.tmp"))


def test_a_run_killed_in_the_middle_of_writing_ends_with_the_same_weights(
    data: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    # fsync: the data of a file is written, its name is not there yet; a folder's fsync comes after the rename. The runs
    # write batch.png, then last.pt at steps 2, 3 (with best.pt before it, and an empty plot after it), 4, 6, …
    for name, call in (("replace", 3), ("fsync", 7), ("replace", 2)):
        process = start(data, tmp_path, die_at=(name, call))
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed: the plan is out of date"
        for path in tmp_path.glob("*.pt"):
            torch.load(path, weights_only=True)  # whole, whatever happened
    process = start(data, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(
    data: Path, whole: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    chance, kills = random.Random(workers), 0
    for _ in range(3):
        process = start(data, tmp_path, workers=workers)
        deadline = time.monotonic() + 20
        while not (tmp_path / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.join(chance.uniform(0.0, 0.6 if kills else 0.05))  # the first one surely before its end
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    process = start(data, tmp_path, workers=workers)
    process.join()
    assert process.exitcode == 0
    assert kills > 0
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("number", "exception", "code"), [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)]
)
def test_a_signal_stops_after_the_step_and_the_run_goes_on(
    data: Path, whole: dict[str, Any], tmp_path: Path, number: int, exception: type[BaseException], code: int | None
) -> None:
    run = make_trainer(data, tmp_path)
    step, lines = run.learner.step, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if run.step == 4:
            os.kill(os.getpid(), number)
        return step(*arguments, **options)

    run.learner.step = interrupted
    before = signal.getsignal(number)
    with pytest.raises(exception) as caught:
        run.fit(lines.append)
    assert getattr(caught.value, "code", None) == code
    assert signal.getsignal(number) is before
    assert run.step in (5, 6)  # the wish is read when a step begins
    assert f"stopped at step {run.step} of 9 (epoch 2) and saved: the same command goes on" in lines[-1]
    resumed = make_trainer(data, tmp_path)
    assert resumed.resume()
    assert resumed.step == run.step
    resumed.fit(silent)
    assert_same_run(tmp_path, whole)


def test_a_frozen_part_stays_and_resumes(data: Path, tmp_path: Path) -> None:
    def frozen() -> torch.nn.Module:
        torch.manual_seed(0)
        model = models.PoseNetwork(EfficientNetLite(0), 2)
        model.backbone.freeze(4)
        return model

    schedule = replace(SCHEDULE, epochs=2, extra_first=0, extra_last=0, average=None)
    initial = {name: value.clone() for name, value in frozen().state_dict().items()}
    run = make_trainer(data, tmp_path / "whole", schedule, model=frozen())
    run.fit(silent)
    first = make_trainer(data, tmp_path / "two", replace(schedule, stop_after=1), model=frozen())
    first.fit(silent)
    second = make_trainer(data, tmp_path / "two", schedule, model=frozen())
    assert second.resume()
    second.fit(silent)
    assert_same(run.weights(), second.weights())
    for name, value in run.model.state_dict().items():
        if name.startswith(("backbone.stem", "backbone.stages.3")):
            assert torch.equal(value, initial[name]), name
    learnt = "backbone.stages.5.0.filter.0.weight"
    assert not torch.equal(run.model.state_dict()[learnt], initial[learnt])
    thawed = models.PoseNetwork(EfficientNetLite(0), 2)
    with pytest.raises(InputError, match="another network: frozen tensors was"):
        make_trainer(data, tmp_path / "two", schedule, model=thawed).resume()


def test_checkpoints_hold_the_weights_to_deploy(data: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    run = make_trainer(data, tmp_path)
    run.fit(silent)
    for name in ("last.pt", "best.pt"):
        model = small_run.network()
        load_checkpoint(model, tmp_path / name)
        kept = torch.load(tmp_path / name, weights_only=True)["state_dict"]
        assert_same(dict(model.state_dict()), dict(kept))
    assert_same(run.weights(), {n: v.clone() for n, v in whole["state_dict"].items()})
    assert whole["evaluation"]["auc"] == max(r["metrics"]["AUC"] for r in whole["history"])
    assert whole["history"][whole["evaluation"]["epoch"] - 1]["metrics"] == whole["evaluation"]["metrics"]


def test_resume_refuses_what_does_not_belong_to_the_run(data: Path, tmp_path: Path) -> None:
    assert not make_trainer(data, tmp_path).resume()
    make_trainer(data, tmp_path, replace(SCHEDULE, epochs=2)).fit(silent)
    schedule = replace(SCHEDULE, epochs=2)

    with pytest.raises(InputError, match=r"another schedule: learning_rate was 0\.005, now 1\.0\. Go on with"):
        make_trainer(data, tmp_path, replace(schedule, learning_rate=1.0)).resume()
    with pytest.raises(InputError, match="another data set: real was 10, now 8"):
        make_trainer(data, tmp_path, schedule, real=8).resume()
    with pytest.raises(InputError, match="another data set: augmentation was 'Augmentation"):
        make_trainer(data, tmp_path, schedule, augmentation=None).resume()
    other = make_trainer(data, tmp_path, schedule)
    other.identity["spec"] = {**other.identity["spec"], "name": "another"}
    with pytest.raises(InputError, match="another spec: name was 'small', now 'another'"):
        other.resume()
    wide = make_trainer(data, tmp_path, schedule, model=small_run.network(outputs=3))
    before = {name: value.clone() for name, value in wide.model.state_dict().items()}
    with pytest.raises(InputError, match=r"another network: 4\.weight "):
        wide.resume()
    assert_same(dict(wide.model.state_dict()), before)  # nothing was loaded
    with pytest.raises(InputError, match="holds a run already: call resume"):
        make_trainer(data, tmp_path, schedule).fit(silent)
    assert make_trainer(data, tmp_path, replace(schedule, stop_after=1)).resume()  # may be told to stop elsewhere

    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as a checkpoint of this trainer"):
        make_trainer(data, tmp_path, schedule).resume()
    torch.save({"state_dict": {}}, tmp_path / "last.pt")
    with pytest.raises(InputError, match="no checkpoint that this version can go on with"):
        make_trainer(data, tmp_path, schedule).resume()


def test_resume_takes_another_execution(data: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    plain = small_run.network(normalised=False, dropout=False)
    one = make_trainer(data, tmp_path / "one", model=plain)
    one.fit(silent)
    model = small_run.network(normalised=False, dropout=False)
    make_trainer(data, tmp_path / "two", replace(SCHEDULE, stop_after=1), model=model).fit(silent)
    model = small_run.network(normalised=False, dropout=False)
    two = make_trainer(data, tmp_path / "two", execution=replace(CPU, micro_batch=1), model=model)
    two.resume()
    two.fit(silent)
    for name, value in one.weights().items():
        # another order of sums, through Adam's division by small moments; worst seen 2e-8
        torch.testing.assert_close(two.weights()[name], value, rtol=0, atol=1e-6)


def test_the_spec_of_a_checkpoint_can_be_read_back(whole: dict[str, Any]) -> None:
    assert type(SPEC).from_json(whole["spec"]) == SPEC
