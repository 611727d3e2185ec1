"""Which TensorRT there is, its log, and the names that we use of it in every version that we support."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorrt_names import FILES, list_names, run_with_stubs, stub_libraries, used_names

from edgepose import EngineError, InputError, MissingDependencyError, tensorrt_api

NAMES = json.loads((Path(__file__).parent / "data/tensorrt_names.json").read_text())
FULL = [version for version in NAMES["versions"] if not version.startswith("rtx")]
RTX = [version for version in NAMES["versions"] if version.startswith("rtx")]
# Used behind `api.is_rtx` only.
RTX_ONLY = (
    *("ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"),
    *("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "EngineValidity", "IRuntimeConfig"),
    *("ICudaEngine.create_runtime_config", "Runtime.get_engine_validity", "IRuntimeCache"),
)

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX: pip install 'edgepose[rtx-cu13]'"
)


def of_rtx_only(name: str) -> bool:
    return any(name == own or name.startswith(f"{own}.") for own in RTX_ONLY)


@pytest.fixture(scope="module")
def used(repository: Path) -> set[str]:
    return {name for file, holds in FILES.items() for name in used_names(repository / file, holds)}


# Names ------------------------------------------------------------------------------------------


def test_the_search_for_names_finds_them(used: set[str]) -> None:
    assert {
        *("Builder", "Builder.build_serialized_network", "OnnxParser.parse", "ParserError.node_name", "ILogger.log"),
        *("IProgressMonitor.step_complete", "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "BuilderFlag.TF32"),
        *("Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "EngineValidity.INVALID"),
    } <= used


@pytest.mark.parametrize("version", NAMES["versions"])
def test_every_name_that_we_use_is_in_every_version(version: str, used: set[str]) -> None:
    there = {name for name, versions in NAMES["names"].items() if versions == "all" or version in versions.split()}
    missing = {name for name in used - there if version in RTX or not of_rtx_only(name)}
    assert not missing, sorted(missing)


def test_what_is_marked_as_of_rtx_only_is_used_and_really_missing_elsewhere(used: set[str]) -> None:
    for name in RTX_ONLY:
        if name not in {"IRuntimeCache", "IRuntimeConfig"}:  # in full TensorRT from 10.13, with fewer members
            versions = NAMES["names"][name].split()
            assert not set(versions) >= set(FULL), name
    assert any(of_rtx_only(name) for name in used)


@needs_rtx
def test_the_names_are_in_the_installed_rtx(used: set[str]) -> None:
    module = importlib.import_module("tensorrt_rtx")
    for name in used:
        holder, _, member = name.partition(".")
        assert hasattr(module, holder), name
        assert not member or hasattr(getattr(module, holder), member), name


@pytest.fixture(scope="module")
def full_stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for full TensorRT's libraries, so that its bindings import."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("needs the bindings of full TensorRT: pip install --no-deps tensorrt-cu13-bindings")
    if importlib.util.find_spec("tensorrt_libs") is not None:
        pytest.skip("full TensorRT's own libraries are installed, so there is nothing to stand in for")
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to compile stand-ins for TensorRT's libraries")
    return stub_libraries(Path(spec.origin).parent, tmp_path_factory.mktemp("stubs"))


def test_the_names_are_in_the_installed_bindings_of_full_tensorrt(full_stubs: Path, used: set[str]) -> None:
    there = set(json.loads(run_with_stubs(full_stubs, list_names("tensorrt_bindings"))))
    assert {name for name in used if not of_rtx_only(name)} <= there


def test_full_tensorrt_loads_and_says_that_it_cannot_build_without_a_gpu(full_stubs: Path) -> None:
    code = """
import onnx
from edgepose import EngineError, tensorrt_api
from edgepose.build import _targets
from edgepose.build_trt import build_network
from edgepose.enginefile import BuildOptions

api = tensorrt_api.load()  # without a choice: full TensorRT comes first
assert (api.name, api.is_rtx, api.compute_capabilities) == ("tensorrt", False, ()), api
assert int(api.version.split(".")[0]) >= 10
assert api.network_flags == 1 << int(api.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
for call in (
    lambda: _targets(api, None, BuildOptions()),
    lambda: build_network(api, onnx.ModelProto(), None, (1, 1, 1), (), BuildOptions(), print),
):
    try:
        call()
    except EngineError as error:
        print(error)
"""
    first, second = run_with_stubs(full_stubs, code).splitlines()
    assert "there is no usable GPU here" in first
    assert "--flavour tensorrt-rtx" in first
    assert "needs a GPU that it supports" in second


# Loading ----------------------------------------------------------------------------------------


def fake_tensorrt(version: str) -> Any:
    flags = SimpleNamespace(STRONGLY_TYPED=1)
    return SimpleNamespace(__version__=version, ILogger=type("ILogger", (), {}), NetworkDefinitionCreationFlag=flags)


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules by name; an exception is raised, and what is not there is not installed."""
    modules: dict[str, Any] = {}

    def import_module(name: str) -> Any:
        found = modules.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", import_module)
    # Not the cached one: a real module's logger must not be made twice, nor a fake one stay.
    monkeypatch.setattr(tensorrt_api, "_load", tensorrt_api._open)
    monkeypatch.setattr(tensorrt_api, "_system_tensorrt", lambda: None)
    return modules


def test_full_tensorrt_comes_first(imports: dict[str, Any]) -> None:
    imports["tensorrt_rtx"] = fake_tensorrt("1.7.1.116")
    assert tensorrt_api.load().name == "tensorrt-rtx"
    imports["tensorrt_bindings"] = fake_tensorrt("11.4.0.106")
    assert tensorrt_api.load().name == "tensorrt"
    imports["tensorrt"] = fake_tensorrt("10.3.0")
    assert tensorrt_api.load().version == "10.3.0"
    assert tensorrt_api.load("tensorrt-rtx").is_rtx
    assert [found.version for found in tensorrt_api.installed()] == ["10.3.0", "1.7.1.116"]


def test_the_flag_for_strong_typing_has_another_number_in_each_version(imports: dict[str, Any]) -> None:
    imports["tensorrt"] = fake_tensorrt("10.3.0")
    assert tensorrt_api.load().network_flags == 2
    imports["tensorrt"].NetworkDefinitionCreationFlag = SimpleNamespace()
    assert tensorrt_api.load().network_flags == 0


def test_a_flavour_that_is_not_one(imports: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="one of tensorrt, tensorrt-rtx, got 'trt'"):
        tensorrt_api.load("trt")


def test_nothing_installed_says_what_to_install(imports: dict[str, Any]) -> None:
    with pytest.raises(MissingDependencyError, match=r"edgepose\[tensorrt-cu13\].* or .*edgepose\[rtx-cu13\]"):
        tensorrt_api.load()
    full, rtx = tensorrt_api.installed()
    assert (full.reason, rtx.reason) == ("tensorrt is not installed", "tensorrt-rtx is not installed")
    assert "pip install" in rtx.advice


def test_bindings_without_their_libraries_say_which(imports: dict[str, Any]) -> None:
    imports["tensorrt"] = ImportError("libnvinfer.so.10: cannot open shared object file")
    with pytest.raises(MissingDependencyError, match=r"does not load \(libnvinfer.so.10"):
        tensorrt_api.load("tensorrt")
    imports["tensorrt"] = ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs")
    with pytest.raises(MissingDependencyError, match=r"does not load .*tensorrt_libs"):
        tensorrt_api.load("tensorrt")
    imports["tensorrt"] = SimpleNamespace()  # an empty package of that name
    with pytest.raises(MissingDependencyError, match=r"does not load .*__version__"):
        tensorrt_api.load("tensorrt")


@pytest.mark.parametrize(("flavour", "module", "version"), [
    ("tensorrt", "tensorrt", "10.2.0"), ("tensorrt", "tensorrt", "8.6.1"), ("tensorrt-rtx", "tensorrt_rtx", "1.3.0.35"),
])  # fmt: skip
def test_an_old_version_is_refused(imports: dict[str, Any], flavour: str, module: str, version: str) -> None:
    imports[module] = fake_tensorrt(version)
    with pytest.raises(
        EngineError, match=rf"{flavour} {version} is too old: .* or later .*Upgrade it: pip install --up"
    ):
        tensorrt_api.load(flavour)
    assert "too old" in {found.name: found.reason for found in tensorrt_api.installed()}[flavour]


def test_jetson(imports: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "_on_jetson", lambda: True)
    with pytest.raises(MissingDependencyError, match="sudo apt install nvidia-jetpack"):
        tensorrt_api.load("tensorrt")
    monkeypatch.setattr(tensorrt_api, "_system_tensorrt", lambda: Path("/usr/lib/python3.10/dist-packages/tensorrt"))
    with pytest.raises(MissingDependencyError, match=r"python3.10/dist-packages.*--system-site-packages"):
        tensorrt_api.load("tensorrt")
    imports["tensorrt"] = fake_tensorrt("8.6.2")
    with pytest.raises(EngineError, match=r"flash JetPack 6.1 or later"):
        tensorrt_api.load("tensorrt")


# The log ----------------------------------------------------------------------------------------


@needs_rtx
def test_messages_are_collected_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    api = tensorrt_api.load("tensorrt-rtx")
    assert api is tensorrt_api.load("tensorrt-rtx")
    with api.collect() as outer, api.collect() as inner:
        assert not api.module.OnnxParser(
            api.module.Builder(api.logger).create_network(api.network_flags), api.logger
        ).parse(b"no model")
    assert outer.errors == inner.errors != []
    assert outer.summary().startswith("TensorRT says: ")
    assert len(outer.summary(60)) <= 60 + len("TensorRT says: ")
    assert not api._collecting
    assert capfd.readouterr() == ("", "")


def test_each_thread_gets_its_own_messages_and_those_of_threads_that_do_not_collect() -> None:
    collecting: list[tensorrt_api.Messages] = []
    logger = tensorrt_api._make_logger(fake_tensorrt("11.0"), collecting)
    api = tensorrt_api.Api("tensorrt", None, "11.0", logger, collecting)
    here, there = threading.Event(), threading.Event()
    others: list[str] = []

    def other() -> None:
        with api.collect() as messages:
            here.set()
            logger.log("Severity.ERROR", "of the other")
            there.wait(10)
        others.extend(messages.errors)

    with api.collect() as mine:
        thread = threading.Thread(target=other)
        thread.start()
        here.wait(10)
        logger.log("Severity.INTERNAL_ERROR", "mine")
        for severity in ("INFO", "VERBOSE"):
            logger.log(f"Severity.{severity}", "chatter")
        for _ in range(2):
            logger.log("Severity.WARNING", "twice")
        builder_thread = threading.Thread(target=logger.log, args=("Severity.ERROR", "of everyone"))
        builder_thread.start()
        builder_thread.join()
        there.set()
        thread.join()
    assert mine.errors == ["mine", "of everyone"]
    assert mine.warnings == ["twice"]
    assert others == ["of the other", "of everyone"]
    assert tensorrt_api.Messages().summary() == "TensorRT gave no reason"


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads take turns after each few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_many_threads_collect_at_once_and_nothing_is_lost(impatient: None) -> None:
    collecting: list[tensorrt_api.Messages] = []
    logger = tensorrt_api._make_logger(fake_tensorrt("11.0"), collecting)
    api = tensorrt_api.Api("tensorrt", None, "11.0", logger, collecting)
    wrong: list[list[str]] = []

    def work(name: str) -> None:
        for number in range(300):
            with api.collect() as messages:
                logger.log("Severity.ERROR", f"{name} {number}")
            if messages.errors != [f"{name} {number}"]:
                wrong.append(messages.errors)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert collecting == []


def test_messages_are_told_apart_by_what_they_are_and_not_by_what_they_hold() -> None:
    api = tensorrt_api.Api("tensorrt", None, "11.0", None, [])
    with api.collect() as outer:
        with api.collect() as inner:
            assert outer is not inner
        assert [messages is outer for messages in api._collecting] == [True]


def test_threads_that_load_at_once_get_one_logger(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    monkeypatch.setattr(tensorrt_api, "_loaded", {})

    def slow(name: str) -> tuple[Any, str]:
        time.sleep(0.05)
        return fake_tensorrt("11.0"), "11.0"

    monkeypatch.setattr(tensorrt_api, "_import", slow)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: tensorrt_api.load("tensorrt"), range(8)))
    assert len({id(api.logger) for api in found}) == 1, "TensorRT keeps the first logger, the others hear nothing"


def test_gpu_here_tells_a_gpu_or_none() -> None:
    gpu = tensorrt_api.gpu_here()
    assert gpu is None or (gpu.name and gpu.sm.startswith("sm") and int(gpu.sm[2:]) >= 30)
    assert tensorrt_api.gpu_here(999) is None
