"""The settings that the study compares, and which of them this machine survives.

OpenVINO takes its instructions from what the processor advertises, and dies where the machine does not let it use them
(AMX in some virtual machines). So each of its settings first runs in a process of its own; one that dies is tried again
with oneDNN held to AVX-512 (ONEDNN_MAX_CPU_ISA), and the notes say so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks.bench_models import BenchModel, cache_folder, int8_of
from edgepose.benchmarks.peers.openvino_probe import ILLEGAL_INSTRUCTION, ISAS, VARIABLE
from edgepose.benchmarks.settings_graphs import int8_as_exported, rewritten
from edgepose.benchmarks.timing import fresh_process
from edgepose.benchmarks.ways import usable_cpus
from edgepose.engines import Engine, open_engine
from edgepose.engines.onnxruntime import import_onnxruntime, open_session, session_options
from edgepose.errors import EdgePoseError, InputError

__all__ = [
    "BASELINE",
    "DEFAULT",
    "ORT_CHANGES",
    "Network",
    "Setting",
    "instructions",
    "settings_of",
    "short",
    "survivors",
]

# Images (N, 3, h, w) -> heatmaps (N, K, h', w'), which the next call may overwrite
Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Setting:
    """One way to run a network.

    Attributes:
        engine: ``onnxruntime``, ``openvino`` or ``edgepose``.
        name: what is set, in words.
        precision: ``fp32``, ``bf16`` or ``int8``.
        open: makes the network; closed by forgetting it.
        probe: arguments of OPENVINO_PROBE; None: nothing that could end the process.
    """

    engine: str
    name: str
    precision: str
    open: Callable[[], Network]
    probe: tuple[str, str, str] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What no other setting has."""
        return self.engine, self.name, self.precision


BASELINE = ("onnxruntime", "as exported", "fp32")
DEFAULT = ("edgepose", "default", "fp32")

OPENVINO_PROBE = """\
import json, os, sys
path, precision, isa, threads = sys.argv[2:]
if isa:
    os.environ["ONEDNN_MAX_CPU_ISA"] = isa
import numpy, openvino
config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
if threads:
    config["INFERENCE_NUM_THREADS"] = int(threads)
network = openvino.Core().compile_model(path, "CPU", config)
shape = network.input(0).partial_shape
sizes = [side.get_length() if side.is_static else 1 for side in shape]
network(numpy.zeros(sizes, numpy.float32))
print(json.dumps(True))
"""


def settings_of(model: BenchModel, cache: Path | None = None) -> tuple[list[Setting], list[str]]:
    """All settings that can be made here, the baseline first; and notes on the others."""
    every, notes = usable_cpus(), []
    graph = rewritten(model.path, (cache or cache_folder()) / "benchmarks")
    files: dict[str, Path] = {"as exported": model.path} | ({"sub-pixel": graph} if graph else {})
    int8: dict[str, Path] = {}
    try:
        int8["sub-pixel" if graph else "as exported"] = int8_of(model, cache)
        if graph:
            int8["as exported"] = int8_as_exported(model, cache or cache_folder())
    except (EdgePoseError, ImportError) as error:
        notes.append(f"{model.name}: no INT8: {error}")
    best = "sub-pixel" if graph else "as exported"
    made = [Setting("onnxruntime", name, "fp32", partial(_ort, path)) for name, path in files.items()]
    made.append(Setting(*DEFAULT, partial(_ours, model.path)))
    for count in sorted({1, 2, every} - {n for n in (1, 2) if n > every}):
        made.append(
            Setting("onnxruntime", f"{best}, threads {count}", "fp32", partial(_ort, files[best], threads=count))
        )
    for name, change in ORT_CHANGES.items():
        made.append(Setting("onnxruntime", f"{best}, {name}", "fp32", partial(_ort, files[best], change=change)))
    made += [Setting("onnxruntime", name, "int8", partial(_ort, path)) for name, path in int8.items()]
    if find_spec("openvino") is None:
        return made, [*notes, "OpenVINO is left out, it is not installed: pip install openvino"]
    for name, path in files.items():
        made.append(_openvino_setting(name, "fp32", path))
    made.append(_openvino_setting(f"{best}, static batch", "fp32", files[best], static=True))
    for count in sorted({1, 2, every}) if every > 2 else (1,):  # of two cores, two are its default
        made.append(_openvino_setting(f"{best}, threads {count}", "fp32", files[best], threads=count))
    made.append(_openvino_setting(best, "bf16", files[best]))
    made += [_openvino_setting(name, "int8", path) for name, path in int8.items()]
    return made, notes


def _set(options: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(options, name, value)


def _level(options: Any, name: str) -> None:
    options.graph_optimization_level = getattr(import_onnxruntime().GraphOptimizationLevel, name)


def _parallel(options: Any) -> None:
    options.execution_mode = import_onnxruntime().ExecutionMode.ORT_PARALLEL


# Each changes one of the options that edgepose.engines.onnxruntime.session_options makes
ORT_CHANGES: dict[str, Callable[[Any], None]] = {
    "spinning off": lambda options: options.add_session_config_entry("session.intra_op.allow_spinning", "0"),
    "spinning for 1 s": lambda options: options.add_session_config_entry(
        "session.intra_op.spin_duration_us", "1000000"
    ),
    "parallel execution": _parallel,
    "graph level off": partial(_level, name="ORT_DISABLE_ALL"),
    "graph level basic": partial(_level, name="ORT_ENABLE_BASIC"),
    "graph level extended": partial(_level, name="ORT_ENABLE_EXTENDED"),
    "arena off": partial(_set, enable_cpu_mem_arena=False),
    "memory pattern off": partial(_set, enable_mem_pattern=False),
    "denormals as zero": lambda options: options.add_session_config_entry("session.set_denormal_as_zero", "1"),
}


def _ort(path: Path, threads: int | None = None, change: Callable[[Any], None] | None = None) -> Network:
    options = session_options(import_onnxruntime(), threads)
    if change is not None:
        change(options)
    session = open_session(str(path), options, str(path))
    name = session.get_inputs()[0].name
    return lambda images: np.asarray(session.run(None, {name: images})[0])


def _ours(path: Path) -> Network:
    engine = open_engine(path, spec=None, device="cpu", max_batch=1)
    assert isinstance(engine, Engine)
    return engine.run


def _openvino_setting(
    name: str, precision: str, path: Path, threads: int | None = None, *, static: bool = False
) -> Setting:
    hint = "bf16" if precision == "bf16" else "f32"
    probe = str(path), hint, str(threads or "")
    return Setting("openvino", name, precision, partial(_openvino, path, hint, threads, static=static), probe)


def _openvino(path: Path, precision: str, threads: int | None, *, static: bool = False) -> Network:
    import openvino

    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    if static:
        from edgepose.benchmarks.peers.openvino_way import StaticRequests

        return StaticRequests(path, config)
    request: Any = openvino.Core().compile_model(str(path), "CPU", config).create_infer_request()
    return lambda images: np.asarray(request.infer([images], share_inputs=True, share_outputs=True)[0])


# What the processor really does -----------------------------------------------------------------


def survivors(settings: Sequence[Setting], show: Callable[[str], Any]) -> tuple[list[Setting], str, list[str]]:
    """The settings that do not end the process, the instruction set that OpenVINO must be held to, and notes."""
    alive: list[Setting] = []
    notes: list[str] = []
    limit = 0  # of ISAS: all of OpenVINO's settings share a process, so one that needs it holds the others to it
    for setting in settings:
        if setting.probe is None:
            alive.append(setting)
            continue
        show(f"{setting.engine} {setting.name} {setting.precision}")
        path, hint, threads = setting.probe
        problem = ""
        found: int | None = None
        for number, isa in list(enumerate(ISAS))[limit:]:
            try:
                fresh_process(OPENVINO_PROBE, runs=1, arguments=(path, hint, isa, threads))
            except InputError as error:
                problem = problem or str(error)
                if not any(f"ended with {code}" in problem for code in ("-", ILLEGAL_INSTRUCTION)):
                    # OpenVINO refused it, as it would with any instructions
                    break
            else:
                found = number
                break
        words = f"OpenVINO, {setting.name}, {setting.precision}"
        if found is None:
            notes.append(f"{words} is left out: {short(problem)}")
            continue
        if found > limit:
            notes.append(f"{words} dies with the instructions that the processor advertises ({short(problem)})")
        alive.append(setting)
        limit = max(limit, found)
    if limit:
        notes.append(f"So all of OpenVINO's settings ran with {VARIABLE}={ISAS[limit]}.")
    if limit and "openvino" in sys.modules:
        kept = [setting for setting in alive if setting.probe is None]
        return kept, "", [*notes, "OpenVINO was loaded before and cannot be held to them any more: left out."]
    return alive, ISAS[limit], notes


def short(text: str) -> str:
    """The end of a message, where what was wrong is said."""
    words = " ".join(text.split())
    return words if len(words) <= 300 else "... " + words[-300:]


@contextmanager
def instructions(isa: str) -> Iterator[None]:
    """OpenVINO reads the variable when it is loaded."""
    before = os.environ.get(VARIABLE)
    if isa:
        os.environ[VARIABLE] = isa
    try:
        yield
    finally:
        if isa and before is None:
            del os.environ[VARIABLE]
        elif isa and before is not None:
            os.environ[VARIABLE] = before
