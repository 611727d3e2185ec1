"""Several calls under way at once on the stand-in's GPU, where what no event orders runs too early or too late."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grid_detector import grid_frame, grid_spec
from painter import painter_spec
from traffic import Traffic, same

from edgepose import EngineError, InputError
from edgepose.pipelines import MOST_PENDING, Pipeline
from edgepose.pipelines.device_calls import Call
from edgepose.pipelines.uploads import FrameUploads, Lease

OpenBoth = Callable[..., tuple[Pipeline, Pipeline]]
STEPS = 80


@pytest.fixture
def traffic(open_both: OpenBoth) -> Callable[[int], Traffic]:
    host, device = open_both(painter_spec(sampling="opencv4"), detector=grid_spec(nms_iou=None, max_detections=6))
    return lambda seed: Traffic(host, device, seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_traffic(traffic: Callable[[int], Traffic], seed: int) -> None:
    made = traffic(seed)
    made.run(STEPS)
    assert made.checked > STEPS // 4
    assert made.wrong == 0


def _no_wait_for_uploads(patch: pytest.MonkeyPatch) -> None:
    class Never:
        def __init__(self) -> None:
            import cupy

            self._mark = None
            self.ptr = cupy.cuda.Event().ptr

    patch.setattr(Lease, "uploaded", property(lambda self: Never()))


def _frames_given_back_too_early(patch: pytest.MonkeyPatch) -> None:
    locate = FrameUploads.locate
    patch.setattr(FrameUploads, "locate", lambda self, *given: (locate(self, *given)[0], []))

    def forget(self: Call, frames: Any) -> None:
        self._views = [dataclasses.replace(frame, lease=None) for frame in frames]

    patch.setattr(Call, "frames", property(lambda self: self._views, forget), raising=False)


def _pinned_memory_reused_at_once(patch: pytest.MonkeyPatch) -> None:
    take = FrameUploads._take

    def careless(self: FrameUploads, needed: int, room: int) -> Any:
        slot = take(self, needed, room)
        self._free.append(slot)
        return slot

    patch.setattr(FrameUploads, "_take", careless)
    patch.setattr(Lease, "__del__", lambda self: None)


@pytest.mark.parametrize(
    "mistake",
    [_no_wait_for_uploads, _frames_given_back_too_early, _pinned_memory_reused_at_once],
)
def test_the_traffic_shows_mistakes(
    traffic: Callable[[int], Traffic],
    mistake: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    cupy_on_cpu: Any,
) -> None:
    """Planted: each of these makes results wrong, so the test above would see them."""
    with monkeypatch.context() as patch:
        mistake(patch)
        made = traffic(0)
        try:
            made.run(STEPS)
        except (EngineError, cupy_on_cpu.cuda.runtime.CUDARuntimeError):  # memory that was freed too early
            made.wrong += 1
    assert made.wrong > 0


# Steady state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [False, True])
@pytest.mark.parametrize("detect", [False, True])
def test_steady_state_allocates_nothing_and_waits_once(
    open_both: OpenBoth, cupy_on_cpu: Any, detect: bool, stage: bool
) -> None:
    """Two calls under way all the time."""
    _, device = open_both()
    frames = [grid_frame((320, 240), seed, objects) for seed, objects in enumerate((2, 0, 1))]
    boxes, owners = np.array([[20, 20, 220, 200], [50, 30, 250, 220]], np.float32), np.array([0, 2], np.int32)

    def start() -> Any:
        views = [(device.stage if stage else device.read)(frame)[0] for frame in frames]
        return device.detect_and_start(views) if detect else device.start(views, boxes, owners)

    pending = [start(), start()]
    for step in range(12):
        if step == 4:
            before = cupy_on_cpu.statistics.copy()
        pending.append(start())
        pending.pop(0).finish()
    used = cupy_on_cpu.statistics - before
    assert used["allocations"] == used["pinned_allocations"] == 0
    assert used["syncs"] == 8
    assert used["graph_launches"] == 8 * (1 + detect)


def test_more_objects_than_a_batch_holds(open_both: OpenBoth, cupy_on_cpu: Any) -> None:
    """In a steady state they all run before the one wait; a sudden crowd takes a second one, once."""
    host, device = open_both(detector=grid_spec(nms_iou=None))
    few = [grid_frame((320, 240), seed, 1) for seed in (0, 1)]
    many = [grid_frame((320, 240), seed, 12) for seed in (0, 1)]
    counts = []
    for frames in (few, few, many, many, many):
        expected = host.detect_and_start([host.read(frame)[0] for frame in frames]).finish()
        before = cupy_on_cpu.statistics.copy()
        assert same(device.detect_and_start([device.read(frame)[0] for frame in frames]).finish(), expected)
        used = cupy_on_cpu.statistics - before
        counts.append((len(expected.boxes), used["syncs"], used["graph_launches"]))
    crowd = counts[-1][0]
    assert crowd > 8
    assert counts[1][1:] == (1, 2)
    assert counts[2][1] == 2
    assert counts[3] == counts[4] == (crowd, 1, 1 + -(-crowd // 4))


def test_frames_without_boxes_are_not_uploaded(open_both: OpenBoth, cupy_on_cpu: Any) -> None:
    _, device = open_both()
    views = [device.read(grid_frame((320, 240), seed))[0] for seed in range(3)]
    boxes = np.array([[20, 20, 220, 200]], np.float32)
    before = cupy_on_cpu.statistics.copy()
    device.run(views, boxes, np.array([1], np.int32))
    assert (cupy_on_cpu.statistics - before)["copies"] == 3  # one frame and the record up, the results down


def test_many_frames_and_boxes_share_runs(open_both: OpenBoth) -> None:
    """Boxes of several frames, in any order: as many runs as they fill."""
    host, device = open_both()
    rng = np.random.default_rng(3)
    frames = [grid_frame((200 + 40 * seed, 240), seed) for seed in range(4)]
    owners = rng.integers(0, 4, 11).astype(np.int32)
    corner = rng.uniform(0, 80, (11, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(60, 140, (11, 2))], 1).astype(np.float32)
    expected = host.run([host.read(frame)[0] for frame in frames], boxes, owners)
    runs = device.engine.runs  # type: ignore[union-attr]
    for read in (device.read, device.stage):
        runs.clear()
        assert same(device.run([read(frame)[0] for frame in frames], boxes, owners), expected)
        assert runs == [4, 4, 4]


def test_frames_on_the_device_and_their_streams(open_both: OpenBoth, cupy_on_cpu: Any) -> None:
    """Each frame is written on a stream of its own, and has not been when the call starts."""
    host, device = open_both()
    cupy = cupy_on_cpu
    frames = [grid_frame((320, 240), seed, 4) for seed in range(3)]
    expected = host.detect_and_start([host.read(frame)[0] for frame in frames]).finish()
    arrays, streams, kept = [], [], []
    for frame in frames:
        pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(frame.nbytes), np.uint8, frame.nbytes)
        pinned[:] = frame.reshape(-1)
        kept.append(pinned)
        arrays.append(cupy.zeros(frame.shape, np.uint8))
        streams.append(cupy.cuda.Stream(non_blocking=True))
        cupy.cuda.Device().synchronize()
        copy_up = cupy.cuda.runtime.memcpyHostToDevice
        cupy.cuda.runtime.memcpyAsync(arrays[-1].data.ptr, pinned.ctypes.data, frame.nbytes, copy_up, streams[-1].ptr)
    views = [device.stage(array)[0] for array in arrays]  # a device frame stays where it is
    assert [view.address for view in views] == [array.data.ptr for array in arrays]
    assert same(device.detect_and_start(views, streams=streams).finish(), expected)
    with pytest.raises(InputError, match="stream must be"):
        device.detect_and_start(views, streams=["main"] * 3)
    assert same(device.detect_and_start(views).finish(), expected)  # that call took no memory with it


# Who owns what --------------------------------------------------------------------------------------


def test_asking_again_gives_the_same(open_both: OpenBoth) -> None:
    for pipeline in open_both():
        pending = pipeline.detect_and_start([pipeline.read(grid_frame((64, 48), 0, 3))[0]])
        first = pending.finish()
        kept = first.keypoints.copy()
        pipeline.detect_and_start([pipeline.read(grid_frame((64, 48), 1, 3))[0]]).finish()
        assert pending.finish() is first
        np.testing.assert_array_equal(first.keypoints, kept)


def test_too_many_calls_under_way(open_both: OpenBoth) -> None:
    host, device = open_both()
    frames = [grid_frame((320, 240), seed, 3) for seed in range(MOST_PENDING + 1)]
    expected = [host.detect_and_start([host.read(frame)[0]]).finish() for frame in frames]
    pending = [device.detect_and_start([device.read(frame)[0]]) for frame in frames[:-1]]
    view, _ = device.read(frames[-1])
    with pytest.raises(EngineError, match=f"{MOST_PENDING} calls are under way"):
        device.detect_and_start([view])
    del pending[1]  # nobody wants it
    gc.collect()
    pending.append(device.detect_and_start([view]))
    del expected[1]
    for one, wanted in zip(reversed(pending), reversed(expected), strict=True):
        assert same(one.finish(), wanted)


def test_closing_with_a_call_under_way(open_both: OpenBoth, cupy_on_cpu: Any) -> None:
    _, device = open_both()
    view, _ = device.read(grid_frame((320, 240), 0, 3))
    pending = device.detect_and_start([view])
    device.close()
    with pytest.raises(EngineError, match="closed before"):
        pending.finish()
    with pytest.raises(EngineError, match="is closed"):
        device.detect_and_start([view])
    del pending
    gc.collect()
    assert device._session.used_bytes == 0  # type: ignore[attr-defined]


def test_a_failed_launch_takes_nothing_with_it(
    open_both: OpenBoth, cupy_on_cpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, device = open_both()
    frame = grid_frame((320, 240), 0, 3)
    expected = host.detect_and_start([host.read(frame)[0]]).finish()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(MOST_PENDING + 1):
        with monkeypatch.context() as patch:
            patch.setattr("edgepose.pipelines.pose_device.DevicePose.launch_recorded", fail)
            with pytest.raises(KeyboardInterrupt):
                device.detect_and_start([device.read(frame)[0]])
        assert device._session.stream.done  # type: ignore[attr-defined]
    assert same(device.detect_and_start([device.read(frame)[0]]).finish(), expected)


def test_slots_are_found_again(open_both: OpenBoth, cupy_on_cpu: Any) -> None:
    """Frames of two sizes in turn: each finds a slot that is large enough, and none grows for ever."""
    _, device = open_both()
    small, large = grid_frame((64, 48), 0, 2), grid_frame((2200, 1300), 1, 2)
    for number in range(4):
        if number == 2:  # by then every call has the memory that it needs, too
            before = cupy_on_cpu.statistics.copy()
        for frames in ((small, large), (large, small), (small, large, small)):
            views = [device.stage(frame)[0] for frame in frames]
            device.detect_and_start(views).finish()
            del views
    used = cupy_on_cpu.statistics - before
    assert used["allocations"] == used["pinned_allocations"] == 0
