"""Learning rates against a literal run of mmengine's schedulers, and what a Schedule refuses."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from edgepose.errors import InputError
from edgepose.training.schedule import Execution, Schedule

MMPOSE = Schedule(
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
    loss="mmpose",
)


def mmengine_rates(schedule: Schedule, steps_per_epoch: int) -> list[float]:
    """The rate of every step, by mmengine's recurrences in the order in which its runner calls them: LinearLR steps
    when it is made and after every iteration, MultiStepLR when it is made and after every epoch; each multiplies the
    rate that it finds."""
    rate, factor = schedule.learning_rate, schedule.warmup_factor
    milestones = Counter(schedule.milestones)
    iteration = epoch = -1

    def linear() -> None:
        nonlocal rate, iteration
        iteration += 1
        if iteration >= schedule.warmup_steps:
            return
        total = schedule.warmup_steps - 1
        if iteration == 0:
            rate *= factor
        else:
            rate *= 1.0 + (1 - factor) / (total * factor + (iteration - 1) * (1 - factor))

    def multi_step() -> None:
        nonlocal rate, epoch
        epoch += 1
        if epoch < schedule.epochs:
            rate *= schedule.gamma ** milestones[epoch]

    linear()
    multi_step()
    rates = []
    for _ in range(schedule.epochs):
        for _ in range(steps_per_epoch):
            rates.append(rate)
            linear()
        multi_step()
    return rates


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 7, 40])  # 1 and 2: the warm-up is still on at the milestones
def test_the_rate_of_every_step_is_mmengines(steps_per_epoch: int) -> None:
    expected = mmengine_rates(MMPOSE, steps_per_epoch)
    total = 210 * steps_per_epoch
    rates = [MMPOSE.rate(step, step // steps_per_epoch, total) for step in range(total)]
    # 500 roundings of mmengine's recurrence; worst seen 3e-15
    assert rates == pytest.approx(expected, rel=1e-13)
    assert rates[0] == pytest.approx(5e-7)
    if steps_per_epoch == 40:
        assert rates[499] == rates[500] == 5e-4
        assert rates[498] < 5e-4
        assert rates[170 * 40 - 1] == 5e-4
        assert rates[170 * 40] == pytest.approx(5e-5)
        assert rates[-1] == pytest.approx(5e-6)


def test_a_milestone_named_twice_counts_twice_as_in_mmengine() -> None:
    schedule = replace(MMPOSE, epochs=4, milestones=(2, 2), warmup_steps=3)
    rates = [schedule.rate(step, step // 5, 20) for step in range(20)]
    assert rates == pytest.approx(mmengine_rates(schedule, 5), rel=1e-13)  # roundings only


def test_without_milestones_the_rate_falls_along_a_cosine() -> None:
    schedule = Schedule(learning_rate=1.0, warmup_steps=10, warmup_factor=0.1, final_rate=0.1)
    rates = [schedule.rate(step, 0, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == max(rates) == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[35] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[110] == pytest.approx(0.1)


def test_no_warm_up_and_one_of_one_step() -> None:
    assert Schedule(warmup_steps=0, learning_rate=1.0).rate(0, 0, 10) == 1.0
    one = Schedule(warmup_steps=1, learning_rate=1.0, warmup_factor=0.5)
    assert [one.rate(step, 0, 3) for step in range(2)] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adamw"),
        ({"loss": "l1"}, "loss must be one of masked, mmpose"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warmup_factor": 2.0}, "warmup_factor must be from 0 to 1"),
        ({"milestones": (0,)}, "milestones must be epochs"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"average": 1.0}, "average"),
        ({"stop_after": 0}, "stop_after"),
    ],
)
def test_values_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schedule(**wrong)


@pytest.mark.parametrize("wrong", [{"precision": "int8"}, {"workers": -1}, {"micro_batch": 0}, {"save_every": 0}])
def test_an_execution_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Execution(**wrong)


def test_the_last_epoch_is_where_the_run_ends() -> None:
    assert Schedule(epochs=5).last_epoch == 5
    assert Schedule(epochs=5, stop_after=3).last_epoch == 3
    assert Schedule(epochs=5, stop_after=9).last_epoch == 5


def test_a_schedule_can_be_read_without_torch() -> None:
    code = "import sys; import edgepose.training.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
