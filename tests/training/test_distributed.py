"""Two gloo processes that act as one, here as torchrun would start them, and once by torchrun itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

import small_run
from small_run import CPU, SCHEDULE, make_trainer, silent

from edgepose.errors import InputError
from edgepose.training import progress
from edgepose.training.distributed import connect
from edgepose.training.schedule import Execution, Schedule

PLAIN = replace(SCHEDULE, average=0.9)
NAMES = ("last.pt", "best.pt", "log.jsonl", "batch.png", "loss.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    small_run.write_photos(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "plot", lambda _: b"")
    torch.set_num_threads(1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def two_processes(data: Path, folder: Path, **options: Any) -> tuple[dict[int, Any], list[int | None]]:
    """What each process answers, or its error; and the exit codes. They must end within a minute."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(small_run.PRELOAD)
    queue, port = context.Queue(), free_port()
    processes = [
        context.Process(target=small_run.train_as, args=(rank, 2, port, data, folder, options, queue))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    answers = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert not process.is_alive(), "a process hangs"
    return answers, [process.exitcode for process in processes]


def one_process(data: Path, folder: Path, schedule: Schedule, execution: Execution = CPU) -> Any:
    model = small_run.network(normalised=False, dropout=False)
    trainer = make_trainer(data, folder, schedule, execution, model=model)
    trainer.resume()
    trainer.fit(silent)
    return trainer


def values(folder: Path, event: str, name: str) -> list[float]:
    """A value of every record of a kind in a run's log."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record[name] for record in records if record["event"] == event]


def losses(folder: Path) -> list[float]:
    """The loss of every epoch."""
    return values(folder, "epoch", "loss")


@pytest.mark.parametrize("loss", ["masked", "mmpose"])
def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path, loss: Any) -> None:
    schedule = replace(PLAIN, loss=loss)
    micro = replace(CPU, micro_batch=1)  # two in each process
    alone = one_process(data, tmp_path / "one", schedule)
    answers, codes = two_processes(data, tmp_path / "two", schedule=schedule, execution=micro)
    assert codes == [0, 0]
    # sums in another order; worst seen 1.2e-7
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    # Adam would hide gradients that are too large by a factor
    assert values(tmp_path / "two", "step", "gradient_norm") == pytest.approx(
        values(tmp_path / "one", "step", "gradient_norm"), rel=1e-5
    )
    together = torch.load(tmp_path / "two" / "last.pt", weights_only=True)
    for name, value in alone.weights().items():
        # the same, through Adam's division by small moments; worst seen 3e-8
        torch.testing.assert_close(together["state_dict"][name], value, rtol=0, atol=1e-6)
    assert len(together["random"]) == 2  # the state of each process's generator
    # Only process 0 writes and logs, and the other one knows what it found
    assert sorted(path.name for path in (tmp_path / "two").iterdir() if "tfevents" not in path.name) == sorted(NAMES)
    assert len(list((tmp_path / "two").glob("*tfevents*"))) == 1
    assert len(answers[0]["lines"]) == 3
    assert answers[1]["lines"] == []
    assert answers[0]["history"] == answers[1]["history"]


def test_two_processes_go_on_with_the_run_of_one(data: Path, tmp_path: Path) -> None:
    whole = one_process(data, tmp_path / "whole", PLAIN)
    one_process(data, tmp_path / "parts", replace(PLAIN, stop_after=1))
    answers, codes = two_processes(data, tmp_path / "parts", schedule=PLAIN, execution=CPU)
    assert codes == [0, 0]
    assert answers[0]["resumed"]
    assert answers[1]["resumed"]
    state = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)
    for name, value in whole.weights().items():
        torch.testing.assert_close(state["state_dict"][name], value, rtol=0, atol=1e-6)  # as above; worst seen 2e-8


@pytest.mark.parametrize("broken", [0, 1])
def test_a_process_that_fails_ends_the_other_with_its_error(data: Path, tmp_path: Path, broken: int) -> None:
    answers, codes = two_processes(data, tmp_path, schedule=PLAIN, execution=CPU, break_rank=broken)
    assert 0 not in codes
    assert isinstance(answers[broken], InputError)
    assert "gone.png" in str(answers[broken])
    # The store of this test lives in process 0, and so does its message; torchrun's outlives them all
    expected = "process 1 failed: InputError" if broken else "another of its processes ended without a word"
    assert expected in str(answers[1 - broken])


def test_torchrun_starts_it_and_tells_the_error(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(Path(small_run.__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import small_run\n"
        "torch.set_num_threads(1)\n"
        "trainer = small_run.make_trainer(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "if trainer.world.rank == 1: small_run._break(trainer)\n"
        "trainer.fit()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ended = subprocess.run(
        [*command, str(data), str(tmp_path / "run")], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 1
    assert "gone.png" in ended.stderr
    assert "the run has stopped because process 1 failed: InputError" in ended.stderr


def test_the_parts_of_all_processes_are_the_batches_of_one(data: Path, tmp_path: Path) -> None:
    run = make_trainer(data, tmp_path)
    order = run.order
    parts = [type(run.batches)(order, rank=rank, processes=2, micro_batch=1) for rank in (0, 1)]
    whole = [keys for keys, _ in zip(run.batches, range(order.total_steps()), strict=False)]
    shares = [list(part) for part in parts]
    joined = [
        [*shares[0][2 * i], *shares[0][2 * i + 1], *shares[1][2 * i], *shares[1][2 * i + 1]] for i in range(len(whole))
    ]
    assert joined == whole
    assert len(whole) == order.total_steps() == sum(order.steps(epoch) for epoch in range(3))
    # A start in the middle is the same order from there
    run.batches.start = (1, 1)
    assert list(run.batches) == whole[order.steps(0) + 1 :]
    assert run.batches.of_step(1, 1) == [whole[order.steps(0) + 1]]


def test_a_device_that_is_not_there_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert connect("auto").device == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(InputError, match=f"device '{name}' was asked for, but this PyTorch"):
            connect(name)
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        connect("gpu")
    with pytest.raises(InputError, match="not on 'mps'"):
        connect("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert connect("auto").device == torch.device("cuda", 0)
    with pytest.raises(InputError, match="CUDA device 1 was asked for, but there are 1"):
        connect("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="say cuda, not 'cuda:0'"):
        connect("cuda:0")
    with pytest.raises(InputError, match="start fewer processes"):
        connect("cuda")


def test_a_batch_that_processes_cannot_share_is_refused(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run = make_trainer(data, tmp_path)
    run.world = replace(run.world, size=3)
    with pytest.raises(InputError, match="batch_size of 4 cannot be divided among 3 processes"):
        run._check(10)
    run.world = replace(run.world, size=2)
    run.execution = replace(CPU, micro_batch=4)
    with pytest.raises(InputError, match=r"is 2 crops for each of 2 processes, and micro-batches of 4 .* \[1, 2\]"):
        run._check(10)
