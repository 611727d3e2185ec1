"""The ways find the same landmarks, each peer is what it says, and a peer of the user's joins them."""

from __future__ import annotations

import functools
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from blobs import BOXES, blob_frame, blob_model

from edgepose import geometry
from edgepose.benchmarks import equality, ways
from edgepose.benchmarks.bench_models import BenchModel, open_model
from edgepose.benchmarks.peers import opencv_steps, openvino_probe
from edgepose.benchmarks.scenes import Scene, scene
from edgepose.benchmarks.ways import WAYS, Explained, Selection, UnavailableError, WayOptions
from edgepose.errors import InputError
from edgepose.kernels.reference import crop_warp

OPTIONS = WayOptions(threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    return blob_model(tmp_path_factory.mktemp("ways"))


def opened(name: str, model: BenchModel, monkeypatch: pytest.MonkeyPatch, options: WayOptions = OPTIONS) -> Any:
    if name == "pytorch, compiled":  # all but the compiler is tested, which takes minutes
        torch = pytest.importorskip("torch")
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    try:
        return WAYS[name](model, options)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", WAYS)
def test_every_way_finds_the_blobs(
    name: str, model: BenchModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    frame, centres = blob_frame()
    frame.setflags(write=False)
    way = opened(name, model, monkeypatch)
    try:
        first = way(frame, BOXES[:1])
        keypoints, scores = way(frame, BOXES)
    finally:
        way.close()
    assert way.name == name
    assert any(character.isdigit() for character in way.version)
    assert capfd.readouterr().out == ""
    np.testing.assert_allclose(first[0][0], keypoints[0], atol=1e-3)  # alone or with others: float32 sums
    if isinstance(way, Explained):
        keypoints = way.explained(keypoints, BOXES)
        meant = way.meant(frame, BOXES)
        # It takes its differences in float32 and its statistics in float64. Worst seen 2.5e-6 px
        assert equality.crop_distances(keypoints, meant, BOXES, model).max() < 1e-3
    distances = equality.crop_distances(keypoints, centres, BOXES, model)
    # Levels of the frame and of the crop are whole numbers, and DARK's blur is cut off where a map ends. Worst seen
    # 0.022 px of the crop
    assert distances.max() < 0.05
    assert (scores > 0.8).all()


def test_rtmlib_returns_what_its_two_formulas_say(model: BenchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, centres = blob_frame()
    way = opened("rtmlib", model, monkeypatch)
    returned, _ = way(frame, BOXES)
    affines = geometry.crop_affines(BOXES, model.spec.input_size, "msra")
    size = np.array(model.spec.input_size)
    cells = geometry.transform_points(centres, affines) * model.spec.heatmap_size / size
    per = 1 / affines[:, 0, 0][:, None, None]
    centre = (BOXES[:, None, :2] + BOXES[:, None, 2:]) / 2
    expected = cells / (np.array(model.spec.heatmap_size) - 1) * size * per + centre - size * per / 2
    # The way back is linear, so this is the bound of the test before this one, in frame px
    assert np.abs(returned - expected).max() < 0.05 * per.max()
    assert np.abs(returned - centres).max() > per.max()  # a cell count of 24 taken for 23 steps: px of the crop


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8"])
def test_a_model_that_takes_bgr_is_the_same_network(weights: str, tmp_path: Path) -> None:
    pytest.importorskip("rtmlib")
    from edgepose.benchmarks.peers.rtmlib_way import takes_bgr

    path = blob_model(tmp_path, weights=weights).path
    turned = takes_bgr(onnx.load(path), "blobs").SerializeToString()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 128, 96)).astype(np.float32)
    run = [onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]) for source in (str(path), turned)]
    rgb, bgr = run[0].run(None, {"images": images})[0], run[1].run(None, {"images": images[:, ::-1].copy()})[0]
    np.testing.assert_array_equal(rgb, bgr)  # each map has one factor that is not 0


def test_a_model_that_cannot_take_bgr_is_refused(repository: Path) -> None:
    pytest.importorskip("rtmlib")
    from edgepose.benchmarks.peers.rtmlib_way import takes_bgr

    node = onnx.helper.make_node("Relu", ["images"], ["heatmaps"])
    value = [onnx.helper.make_tensor_value_info(name, 1, ["n", 3, 8, 8]) for name in ("images", "heatmaps")]
    with pytest.raises(UnavailableError, match="does not begin with a convolution"):
        takes_bgr(onnx.helper.make_model(onnx.helper.make_graph([node], "x", value[:1], value[1:])), "odd")


DIES = "import os, signal; os.environ.get('ONEDNN_MAX_CPU_ISA') in {lives} or os.kill(os.getpid(), signal.SIGILL)"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("lives", "told"),
    [([], "SIGILL"), (["AVX512_CORE_VNNI", "AVX2"], "SIGILL"), (["AVX512_CORE_BF16"], "=AVX512_CORE_BF16 for the")],
)
@pytest.mark.parametrize("name", ["openvino", "rtmlib, openvino"])
def test_openvino_that_kills_its_process_is_told(
    name: str, lives: list[str], told: str, model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rtmlib")
    from edgepose.benchmarks.peers import rtmlib_way

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for peer in (openvino_way(), rtmlib_way):
        monkeypatch.setattr(peer, "PROBE", DIES.format(lives=lives))
    with pytest.raises(UnavailableError, match=told) as caught:
        WAYS[name](model, OPTIONS)
    # Advice that is none: held to less than bf16, rtmlib's default would be emulated
    advised = "AVX512_CORE_VNNI" in lives and name == "openvino"
    assert ("ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI for the" in str(caught.value)) == advised


def openvino_way() -> Any:
    pytest.importorskip("openvino")
    from edgepose.benchmarks.peers import openvino_way

    return openvino_way


@pytest.mark.parametrize(
    ("limit", "refused"), [("avx512_core_vnni", True), ("AVX2", True), ("AVX512_CORE_BF16", False), ("", False)]
)
def test_bf16_that_would_be_emulated_is_no_time_of_rtmlib(
    limit: str, refused: bool, model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rtmlib")
    from edgepose.benchmarks.peers import rtmlib_way

    monkeypatch.setattr(rtmlib_way, "PROBE", "print('bf16')")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    if refused:
        with pytest.raises(UnavailableError, match=f"ONEDNN_MAX_CPU_ISA={limit} makes it emulate"):
            rtmlib_way._openvino_default(model.path, model.spec)
    else:
        assert rtmlib_way._openvino_default(model.path, model.spec) == "bf16"


def test_how_processes_of_openvino_end(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {0: "", 1: "", 0xC000001D: "illegal instruction", -1073741795: "illegal instruction"}
    assert {code: openvino_probe._death(code) for code in codes} == codes
    monkeypatch.setattr(openvino_probe, "TIMEOUT", 0.5)
    with pytest.raises(UnavailableError, match=r"did not finish one run in 0\.5 s"):
        openvino_probe.probe("import time; time.sleep(60)", ())
    monkeypatch.setattr(openvino_probe, "TIMEOUT", 60)
    assert openvino_probe.probe("raise ValueError('odd shapes')", ()) == ("", "ValueError: odd shapes", "")
    held = openvino_probe.probe("import os, sys; print(os.environ['ONEDNN_MAX_CPU_ISA'], sys.argv[1])", ("x",), "AVX2")
    assert held.told.split() == ["AVX2", "x"]


def test_openvino_compiles_few_numbers_of_boxes_and_any_behind_them(
    model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_way(), "SIZES", 2)
    network = openvino_way().StaticRequests(model.path, {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    images = np.random.default_rng(0).uniform(-1, 1, (5, 3, 128, 96)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"]).run(
        None, {"images": images}
    )[0]
    for count in (1, 2, 5, 3, 1):
        # Heatmaps up to 1, float32 sums in another order: 6e-8 seen
        np.testing.assert_allclose(network(images[:count]), expected[:count], atol=1e-5)
    shapes = {size: request.model_inputs[0].partial_shape for size, request in network._requests.items()}
    assert {size: shape.is_static for size, shape in shapes.items()} == {1: True, 2: True, 0: False}
    assert shapes[2][0].get_length() == 2


def test_openvino_runs_int8_of_the_exported_graph_where_it_refuses_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = openvino_way()
    model, ours = blob_model(tmp_path), tmp_path / "ours.onnx"
    monkeypatch.setattr(way, "model_file", lambda model, options: ours)
    monkeypatch.setattr(way, "int8_as_exported", lambda model, cache: model.path)
    monkeypatch.setattr(way, "_refusal", lambda path, size: "odd shapes" if path == ours else "")
    opened = way.OpenVinoWay(model, WayOptions(threads=1, precision="int8"))
    frame, _ = blob_frame()
    assert opened(frame, BOXES)[0].shape == (len(BOXES), model.spec.num_keypoints, 2)
    assert "INT8 of the graph as exported" in opened.version
    with pytest.raises(UnavailableError, match="does not take the file: odd shapes"):
        way.OpenVinoWay(model, WayOptions(threads=1))
    monkeypatch.setattr(way, "_refusal", lambda path, size: "odd shapes")
    with pytest.raises(UnavailableError, match="odd shapes"):
        way.OpenVinoWay(model, WayOptions(threads=1, precision="int8"))


def test_pytorch_keeps_its_own_number_of_threads(model: BenchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from edgepose.benchmarks.peers import pytorch_way

    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(pytorch_way, "session_threads", lambda options: options.threads)
    assert pytorch_way.PyTorchWay(model, WayOptions()).version.endswith(", 7 threads")
    assert asked == []
    pytorch_way.PyTorchWay(model, WayOptions(threads=3))
    assert asked == [3]


def test_steps_keep_their_arrays(model: BenchModel) -> None:
    frame, _ = blob_frame()
    steps = opencv_steps.Steps(model.spec)
    memory = []
    for boxes in (BOXES[:1], BOXES, BOXES[1:], BOXES):
        pictures, affines = steps.crop_pictures(frame, boxes)
        images = steps.network_input(pictures)
        plain, same = opencv_steps.crop_pictures(frame, boxes, model.spec)
        np.testing.assert_array_equal(pictures, plain)
        np.testing.assert_array_equal(affines, same)
        np.testing.assert_array_equal(images, opencv_steps.network_input(plain, model.spec))
        memory.append((pictures, images))
    for kind in range(2):
        assert not np.shares_memory(memory[0][kind], memory[1][kind])  # more boxes: grown
        assert np.shares_memory(memory[1][kind], memory[2][kind])
        assert np.shares_memory(memory[1][kind], memory[3][kind])


@pytest.mark.parametrize("name", ["onnxruntime loop", "onnxruntime batched", "openvino"])
def test_landmarks_outlive_the_next_call(name: str, model: BenchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, _ = blob_frame()
    way = opened(name, model, monkeypatch)
    found = way(frame, BOXES)
    kept = [each.copy() for each in found]
    way(np.zeros_like(frame), BOXES + 5)
    for each, copy in zip(found, kept, strict=True):
        np.testing.assert_array_equal(each, copy)


@pytest.mark.parametrize("enlarged", [2, 8])
def test_pictures_for_peers_are_the_crops_that_the_model_means(enlarged: int) -> None:
    spec = open_model("garment-landmarks").spec
    assert spec.sampling == "area"
    frame, boxes = scene(640, 360, 2)
    frame = np.asarray(cv2.resize(frame, None, fx=enlarged, fy=enlarged), np.uint8)
    boxes = np.concatenate([boxes, boxes + 3.7, [[-30, -20, 320, 120], [0, 0, 640, 360]]]).astype(np.float32) * enlarged
    pictures, affines = opencv_steps.crop_pictures(frame, boxes, spec)
    expected = crop_warp(frame, affines, spec.input_size, sampling="area")
    apart = np.abs(pictures.astype(int) - expected.astype(int))
    # OpenCV 5 interpolates otherwise than OpenCV 4, and several halvings round more often than one mean of 16x16 px.
    # Worst crop seen 0.22 levels; without any halving 0.27 to 1.06
    assert apart.mean(axis=(1, 2, 3)).max() < 0.25
    images = opencv_steps.network_input(pictures, spec)
    plain = (pictures[..., ::-1] - np.float32(spec.mean)) / np.float32(spec.std)
    np.testing.assert_allclose(images, plain.transpose(0, 3, 1, 2), atol=1e-6)  # one rounding; 2.4e-7 seen


def test_example_of_a_peer_is_equal_and_would_be_timed(model: BenchModel, tmp_path: Path) -> None:
    text = ways.__doc__ or ""
    code = textwrap.dedent(text[text.index("    import cv2") : text.index("Only what it returns")])
    path = tmp_path / "my_peer.py"
    path.write_text(code)
    selection = Selection(
        ways=("edgepose", "onnxruntime batched"), precisions=("fp32", "int8"), peers=(f"{path}:MyPeer",)
    )
    frame, _ = blob_frame()
    with ExitStack() as stack:
        found, notes = ways.open_ways(model, selection, stack)
        verdict = equality.check(
            model, {key: way for key, way in found.items() if key[1] == "fp32"}, [Scene(frame, BOXES)]
        )
    assert ("MyPeer", "fp32") in found
    assert not verdict.unequal
    assert not verdict.failed
    assert any("MyPeer runs with opencv" in note for note in notes)
    assert ("MyPeer", "int8") not in found
    assert any("MyPeer int8 is left out: fp32 only" in note or "fp32 only" in note for note in notes)


@pytest.mark.parametrize(
    ("content", "peer", "message"),
    [
        ("x = 1", "my.py:x", "must be callable"),
        ("x = 1", "my.py:y", "no attribute 'y'"),
        ("raise ValueError('broken')", "my.py:y", "ValueError: broken"),
        ("x = 1", "other.py:x", r"file\.py:Name, got"),
        ("x = 1", "my.py", r"file\.py:Name, got"),
        ("def rtmlib(model, options): ...", "my.py:rtmlib", "another name"),
    ],
)
def test_peers_that_do_not_load(
    content: str, peer: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(content)
    with pytest.raises(InputError, match=message):
        Selection(peers=(peer,)).factories()


def test_selection() -> None:
    default = set(Selection().factories())
    assert default == {(n, "fp32") for n in WAYS if n not in ways.SLOW_WAYS} | {(n, "int8") for n in ways.INT8_WAYS}
    assert set(Selection(ways=("all",)).factories()) - default == {(n, "fp32") for n in ways.SLOW_WAYS}
    chosen = Selection(ways=("rtmlib", "pytorch"), precisions=("int8",)).factories()
    assert list(chosen) == [("edgepose", "fp32"), ("edgepose", "int8"), ("rtmlib", "int8")]
    assert ("rtmlib", "fp32") not in Selection(without=("rtmlib",)).factories()
    for selection, message in (
        (Selection(ways=("mmpose",)), "no way 'mmpose'"),
        (Selection(without=("mmpose",)), "no way 'mmpose'"),
        (Selection(precisions=("fp8",)), "got 'fp8'"),
        (Selection(without=("edgepose",)), "cannot be left out"),
    ):
        with pytest.raises(InputError, match=message):
            selection.factories()


def test_a_peer_that_fails_is_left_out_with_its_reason_and_ours_is_not(
    model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Fine:
        name, version = "fine", "1"

        def __init__(self, *_: Any) -> None: ...

        def __call__(self, frame: Any, boxes: Any) -> Any:
            return np.zeros((len(boxes), 3, 2)), np.ones((len(boxes), 3))

        def close(self) -> None:
            closed.append(self)

    def broken(model: BenchModel, options: WayOptions) -> ways.Way:
        raise RuntimeError("no such\nthing")

    def absent(model: BenchModel, options: WayOptions) -> ways.Way:
        raise UnavailableError("pip install it")

    monkeypatch.setattr(ways, "WAYS", {"edgepose": Fine, "broken": broken, "absent": absent})
    with ExitStack() as stack:
        found, notes = ways.open_ways(model, Selection(precisions=("fp32",)), stack)
    assert list(found) == [("edgepose", "fp32")]
    assert len(closed) == 1
    assert "blobs: broken is left out. RuntimeError: no such thing" in notes
    assert "blobs: absent is left out. pip install it" in notes
    monkeypatch.setattr(ways, "WAYS", {"edgepose": broken})
    with pytest.raises(RuntimeError), ExitStack() as stack:
        ways.open_ways(model, Selection(precisions=("fp32",)), stack)


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        ("torch", "pytorch", r"pip install 'edgepose\[bench\]'"),
        ("rtmlib", "rtmlib", "pip install --no-deps rtmlib tqdm"),
        ("openvino", "openvino", "pip install openvino"),
    ],
)
def test_a_missing_package_is_told_with_its_command(
    module: str, name: str, told: str, model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in list(sys.modules):
        if known.partition(".")[0] == module or known.startswith("edgepose.benchmarks.peers."):
            monkeypatch.delitem(sys.modules, known)
    monkeypatch.setattr(sys, "meta_path", [finder_without(module), *sys.meta_path])
    with pytest.raises(UnavailableError, match=told):
        WAYS[name](model, OPTIONS)


def finder_without(absent: str) -> Any:
    """A finder that knows of one module that it is not there."""

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name.partition(".")[0] == absent:
                raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)

    return Finder


def test_threads_are_told_where_a_library_would_take_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "usable_cpus", lambda: 3)
    monkeypatch.setattr(ways.os, "cpu_count", lambda: 8)
    assert ways.session_threads(WayOptions()) == 3
    assert ways.session_threads(WayOptions(threads=2)) == 2
    monkeypatch.setattr(ways.os, "cpu_count", lambda: 3)
    assert ways.session_threads(WayOptions()) is None


def test_a_peer_that_fails_in_its_first_call_is_left_out(model: BenchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        name, version = "failing", "1"

        def __call__(self, frame: Any, boxes: Any) -> Any:
            raise RuntimeError("no compiler for this processor")

        def close(self) -> None: ...

    monkeypatch.setitem(WAYS, "failing", lambda model, options: Failing())
    with ExitStack() as stack:
        found, notes = ways.open_ways(model, Selection(ways=("failing",), precisions=("fp32",)), stack)
    assert set(found) == {("edgepose", "fp32")}
    assert "failing is left out. RuntimeError: no compiler for this processor" in notes[-1]
