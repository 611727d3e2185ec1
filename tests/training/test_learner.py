"""One optimiser step: accumulation, low precision, clipping, channels, and what is not finite."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

import small_run
from small_run import CPU, SCHEDULE, make_trainer, network, silent, start

from edgepose.errors import InputError
from edgepose.training import learner, progress
from edgepose.training.dataset import collate
from edgepose.training.learner import make_optimizer
from edgepose.training.losses import masked_mse, mmpose_mse
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


def plain() -> torch.nn.Module:
    return network(normalised=False, dropout=False)


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_micro_batches_give_the_gradients_of_the_whole(data: Path, tmp_path: Path) -> None:
    for loss in ("masked", "mmpose"):
        weights = []
        for micro in (None, 2, 1):
            schedule, execution = replace(SCHEDULE, loss=loss), replace(CPU, micro_batch=micro)
            run = make_trainer(data, tmp_path / f"{loss}{micro}", schedule, execution, model=plain())
            run.fit(silent)
            weights.append(run.weights())
        for other in weights[1:]:
            for name, value in weights[0].items():
                # another order of sums, through Adam's division by small moments; worst seen 4e-8
                torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6)


def test_the_loss_of_a_step_is_that_of_its_whole_batch(data: Path, tmp_path: Path) -> None:
    """Against the loss functions with their own denominators; the gradient against autograd's of that loss."""
    for loss in ("masked", "mmpose"):
        schedule = replace(SCHEDULE, loss=loss, clip_norm=None, average=None)
        model = network(normalised=False, dropout=False, outputs=5)
        run = make_trainer(data, tmp_path, schedule, replace(CPU, micro_batch=2), model=model, channels=(1, 3))
        indices = [[0, 1], [2, 3]]  # the third photo lacks a label
        samples = [collate([run.dataset[0, i] for i in pair]) for pair in indices]
        images, heatmaps, weights = run.learner.batches(collate([run.dataset[0, i] for i in range(4)]))
        predicted = run.model(images)
        if loss == "masked":
            expected = masked_mse(predicted[:, 1:3], heatmaps, weights, schedule.foreground)
        else:
            expected = mmpose_mse(predicted[:, 1:3], heatmaps, weights, outputs=5)
        gradients = torch.autograd.grad(expected, list(run.model.parameters()))
        result = run.learner.step(samples, 1e-3, step=0)
        assert weights.sum() == 7
        assert result.loss == pytest.approx(expected.item(), rel=1e-6)  # float32 sums
        for gradient, parameter in zip(gradients, run.model.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)  # float32 sums in another order
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        assert result.gradient_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("loss", ["masked", "mmpose"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_crops_without_a_label_neither_count_nor_break(data: Path, tmp_path: Path, loss: Any, precision: Any) -> None:
    """A micro-batch whose landmarks are all unlabelled adds nothing; a whole batch of them learns nothing."""
    schedule = replace(SCHEDULE, loss=loss, clip_norm=None, average=None, weight_decay=0.0)
    execution = replace(CPU, micro_batch=2, precision=precision)
    run = make_trainer(data, tmp_path, schedule, execution, model=plain())
    labelled, other = (collate([run.dataset[0, i] for i in pair]) for pair in ([0, 1], [3, 4]))
    unlabelled = other._replace(visible=torch.zeros_like(other.visible))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    nothing = run.learner.step([unlabelled, unlabelled], 1e-3, step=0)
    assert nothing.loss == nothing.gradient_norm == 0.0
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    result = run.learner.step([labelled, unlabelled], 1e-3, step=1)
    assert not result.skipped
    images, heatmaps, weights = run.learner.batches(labelled)
    run.model.load_state_dict(before)
    predicted = run.learner.forward(images)
    masked = loss == "masked"
    alone = (masked_mse(predicted, heatmaps, weights, schedule.foreground) if masked
             else mmpose_mse(predicted, heatmaps, weights, denominator=2 * weights.numel()))  # fmt: skip
    assert result.loss == pytest.approx(float(alone.detach()), rel=1e-6)  # sums in another order; worst seen 0


def test_adam_is_the_references_and_normalisation_does_not_decay() -> None:
    model = network()
    for kind, expected in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        optimizer = make_optimizer(list(model.parameters()), Schedule(optimizer=kind, weight_decay=0.1))
        assert type(optimizer) is expected
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert [decays[id(p)] for p in model.parameters()] == [0.1, 0, 0, 0, 0.1, 0]
        assert optimizer.defaults["betas"] == (0.9, 0.999)
        assert optimizer.defaults["eps"] == 1e-8


def test_gradients_are_clipped(data: Path, tmp_path: Path) -> None:
    run = make_trainer(data, tmp_path, replace(SCHEDULE, clip_norm=0.01, epochs=1))
    run.fit(silent)
    total = math.sqrt(sum(float((p.grad**2).sum()) for p in run.model.parameters()))
    assert total == pytest.approx(0.01, rel=1e-3)
    assert records(tmp_path, "step")[0]["gradient_norm"] > 0.01  # reported as it was


def test_fp16_is_the_networks_arithmetic_alone(data: Path, tmp_path: Path) -> None:
    run = make_trainer(data, tmp_path, execution=replace(CPU, precision="fp16"))
    seen = []
    run.model[4].register_forward_hook(lambda _, __, output: seen.append((run.model.training, output.dtype)))
    run.fit(silent)
    assert set(seen) == {(True, torch.float16), (False, torch.float32)}  # evaluation is in float32
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_and_resumes(data: Path, tmp_path: Path, precision: Any) -> None:
    full = make_trainer(data, tmp_path / "full")
    full.fit(silent)
    for name, stop_after in (("whole", None), ("two", 2), ("two", None)):
        process = start(data, tmp_path / name, precision=precision, stop_after=stop_after)
        process.join()
        assert process.exitcode == 0
    whole, two = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "two"))
    assert bool(whole["scaler"]) == (precision == "fp16")
    assert whole["history"] == two["history"]
    assert all(torch.equal(value, two["trained"][name]) for name, value in whole["trained"].items())
    # 8 or 11 bits of mantissa over 9 steps; worst seen 0.0023
    losses = [record["loss"] for record in whole["history"]]
    assert losses == pytest.approx([record["loss"] for record in full.history], rel=0.02)
    assert losses != [record["loss"] for record in full.history]


def overflow(run: Any, steps: set[int]) -> None:
    """From now on gradients are infinite in these steps."""

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if run.step in steps else gradient

    run.model[4].weight.register_hook(spoil)


def test_fp16_skips_a_step_that_overflows_but_not_for_ever(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_trainer(data, tmp_path, execution=replace(CPU, precision="fp16"))
    overflow(run, {0, 1})
    before = run.weights()
    results = []
    step = run.learner.step
    run.learner.step = lambda *a, **k: results.append(step(*a, **k)) or results[-1]
    run.fit(silent)
    assert [result.skipped for result in results[:4]] == [True, True, False, False]
    assert run.learner.scaler.get_scale() == 2.0**14
    assert any(not torch.equal(value, before[name]) for name, value in run.weights().items())

    monkeypatch.setattr(learner, "MAX_SKIPS", 3)
    endless = make_trainer(data, tmp_path / "endless", execution=replace(CPU, precision="fp16"))
    overflow(endless, set(range(100)))
    with pytest.raises(InputError, match=r"fp16 gradients overflow at any loss scale \(4 steps in a row\) at step 4"):
        endless.fit(silent)


def test_a_gradient_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path) -> None:
    run = make_trainer(data, tmp_path)
    before = run.weights()
    overflow(run, {0})
    with pytest.raises(InputError, match=r"the norm of its gradient is .* at step 1 .* No state was saved before it"):
        run.fit(silent)
    for name, value in run.model.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, before[name]), name
    assert len(torch.load(tmp_path / "bad_batch.pt", weights_only=True)["parts"][0]["files"]) == 4


def test_one_category_of_a_wide_network(data: Path, tmp_path: Path) -> None:
    model = network(outputs=5)
    before = model[4].weight.detach().clone()
    run = make_trainer(data, tmp_path, replace(SCHEDULE, weight_decay=0.0), model=model, channels=(1, 3))
    run.fit(silent)
    changed = (model[4].weight != before).flatten(1).any(1).tolist()
    assert changed == [False, True, True, False, False]
    with pytest.raises(InputError, match=r"gives heatmaps of \(4, 5, 16, 16\) .* say with channels=\(begin, end\)"):
        make_trainer(data, tmp_path / "wrong", model=network(outputs=5)).fit(silent)


def test_a_compiled_network_keeps_its_names(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a compiler for C++ only this backend is there; the wrapper is the same.
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))
    schedule = replace(SCHEDULE, epochs=1)
    run = make_trainer(data, tmp_path / "compiled", schedule, replace(CPU, compile=True, micro_batch=2))
    assert type(run.learner.network).__name__ == "OptimizedModule"
    run.fit(silent)
    state = torch.load(tmp_path / "compiled" / "last.pt", weights_only=True)
    assert list(state["state_dict"]) == list(state["trained"]) == list(network().state_dict())
