"""The chain in GPU memory: upload, CUDA graphs, download, with one wait at the end.

    host          check, affines, copy of the frame (or of the window that the crops see) into pinned memory
    copy stream   upload(frame)
    stream        upload(record of the call)   graph(crop_warp, network, decode_heatmaps)   download(results)
    host          wait, hand out copies

With a detector the record is made on the device:

    stream        upload(table of frames)   graph(letterbox, detector, select_detections, plan_crops)
                  graph(crop_warp, network, decode_heatmaps)   download(detections, results)

The batch size of that second graph (or of several, if one does not hold all) is chosen before anybody knows how many
objects there are: by the last calls. What was found beyond it runs when the host has seen the count, in a further round
with a wait of its own.

All buffers are allocated in the constructor; only those of the frames grow with them, and those of a call with more
boxes than ever before. Several calls may be under way: their work is in the order of one stream, so what is on the
device is shared, and each has pinned memory of its own. docs/gpu.md tells the whole story.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.engines import DeviceEngine
from edgepose.errors import EngineError, InputError
from edgepose.pipelines.buckets import RecentCounts
from edgepose.pipelines.detect_device import DetectedChunk, DeviceDetection
from edgepose.pipelines.detection import joined
from edgepose.pipelines.device_calls import Call, Job, PartOutput, PendingCall, Ran
from edgepose.pipelines.device_frames import FrameView, read_frame
from edgepose.pipelines.models import ModelTable, Share, croppable
from edgepose.pipelines.pose_device import DevicePose, HostPlan
from edgepose.pipelines.protocol import MOST_PENDING, DetectedPoses, DetectorModel, PoseModel, Poses
from edgepose.pipelines.session import Session, cuda_errors
from edgepose.pipelines.uploads import FrameUploads, Window
from edgepose.result import Timings

__all__ = ["DevicePipeline"]

Round = tuple[DetectedChunk, list[list[Ran]]]  # one run of the detector, and what each pose model did behind it


class DevicePipeline:
    """See :class:`edgepose.pipelines.Pipeline`.

    Args:
        models, detector: of engines of device buffers, all on one GPU; the pipeline closes them.
        categories: as of :func:`edgepose.pipelines.open_pipeline`.
        flip_test: crop each box mirrored too; the decoder merges the two heatmaps as it reads them.
        max_batch: the largest number of boxes in one run; more boxes are done in several, with one wait in the end.
        cuda_graph: replay graphs. Without them the stages are timed apart (and the host is busier).

    Raises:
        EngineError: CUDA refused, for instance for want of memory, or an engine fits no batch size.
        MissingDependencyError: CuPy is not installed.
    """

    def __init__(
        self,
        models: Sequence[PoseModel],
        categories: Mapping[str, tuple[int, int]],
        *,
        flip_test: bool,
        max_batch: int,
        cuda_graph: bool,
        detector: DetectorModel | None = None,
    ) -> None:
        assert isinstance(models[0].engine, DeviceEngine)
        self.engine: DeviceEngine = models[0].engine
        self._name = " + ".join(repr(model.spec.name) for model in models)
        self._table = ModelTable([model.spec for model in models], categories)
        self._session = session = Session(self.engine.device_id, use_graphs=cuda_graph)
        self._detection: DeviceDetection | None = None
        with session, cuda_errors(f"preparing {self._name} on {self.engine.device}"):
            self._stages = [DevicePose(session, model, flip_test=flip_test, max_batch=max_batch) for model in models]
            self._recent = [RecentCounts(stage.capacity) for stage in self._stages]
            if detector is not None:
                self._labels = self._table.label_table(detector.spec.category_names)
                self._detection = DeviceDetection(session, detector, self._stages, self._labels)
            self._uploads = FrameUploads(session)
            self._calls = deque(self._new_call() for _ in range(MOST_PENDING))
        self._closed = False

    def _new_call(self) -> Call:
        """What one call under way needs of its own."""
        chunks = [[stage.new_chunk()] for stage in self._stages]
        return Call(self._session.event(), chunks, [self._detection.new_chunk()] if self._detection else [])

    def read(self, frame: Any) -> tuple[FrameView, tuple[int, int]]:
        """Where the pixels are, and (w, h)."""
        with self._session, cuda_errors("looking at the frame"):
            view = read_frame(frame, self.engine.device_id, self._session.stream)
        return view, view.size

    def stage(self, frame: Any) -> tuple[FrameView, tuple[int, int]]:
        """A host frame is in pinned memory and on its way up when this returns."""
        with self._session, cuda_errors("uploading the frame"):
            view = self._uploads.stage(read_frame(frame, self.engine.device_id, self._session.stream))
        return view, view.size

    # Boxes that are given ---------------------------------------------------------------------------

    def run(
        self,
        frames: Sequence[FrameView],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],
        *,
        streams: Sequence[Any] | None = None,
        channels: NDArray[np.int32] | None = None,
    ) -> Poses:
        """Waits for the GPU, so the caller may reuse the frames' memory at once."""
        return self.start(frames, boxes, owners, streams=streams, channels=channels).finish()

    def start(
        self,
        frames: Sequence[FrameView],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],
        *,
        streams: Sequence[Any] | None = None,
        channels: NDArray[np.int32] | None = None,
    ) -> PendingCall[Poses]:
        """Everything is queued when this returns; nothing has been waited for."""
        begun = perf_counter()
        shares = self._table.shares(len(boxes), channels)
        with self._session, cuda_errors(f"running {self._name} on {self.engine.device}"):
            call = self._acquire()
            try:
                jobs = self._launch(call, frames, boxes, owners, shares, streams)
                launched = perf_counter()
                self._look(jobs)
            except BaseException:
                self._give_up(call)
                raise
        host_ms = (launched - begun) * 1e3
        return PendingCall(call, lambda: self._finish_poses(call, jobs, len(boxes), host_ms), self._abandon)

    def _finish_poses(self, call: Call, jobs: Sequence[Job], count: int, host_ms: float) -> Poses:
        """Wait, and hand out copies."""
        asked = perf_counter()
        with self._session, cuda_errors(f"running {self._name} on {self.engine.device}"):
            self._wait(call)
            waited = perf_counter()
            outputs = [job.output() for job in jobs]
            timings = self._timings(call, host_ms, asked, waited)
            self._release(call)
        return Poses(*self._table.join(count, outputs), timings)

    def _launch(
        self,
        call: Call,
        frames: Sequence[FrameView],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],
        shares: Sequence[Share],
        streams: Sequence[Any] | None,
    ) -> list[Job]:
        """Queue everything, then the call's event; nothing here waits."""
        plans = [self._stages[share.model].plan(frames, boxes, owners, share) for share in shares]
        table, call.leases = self._uploads.locate(frames, _windows(plans), streams)
        call.frames = frames
        jobs = []
        for plan in plans:
            stage, count = self._stages[plan.share.model], len(plan.share.rows)
            chunks = []
            for first in range(0, count, stage.capacity):
                part = slice(first, min(first + stage.capacity, count))
                chunk = call.chunk(plan.share.model, stage.new_chunk)
                stage.launch(chunk, plan, part, table, owners)
                chunks.append((chunk, part.stop - part.start))
            jobs.append(Job(plan, chunks))
        call.done.record(self._session.stream)
        return jobs

    def _look(self, jobs: Sequence[Job]) -> None:
        """Which crops see nothing of their frames: found out while the GPU works."""
        for job in jobs:
            job.unseen = self._stages[job.plan.share.model].unseen(job.plan)

    # Boxes that are detected ------------------------------------------------------------------------

    def detect_and_start(
        self, frames: Sequence[FrameView], *, streams: Sequence[Any] | None = None
    ) -> PendingCall[DetectedPoses]:
        """Both stages are queued when this returns; nothing has been waited for."""
        begun = perf_counter()
        if self._detection is None and not self._closed:
            raise InputError("this pipeline has no detector: pass boxes")
        with self._session, cuda_errors(f"running {self._name} on {self.engine.device}"):
            call = self._acquire()
            assert self._detection is not None  # or the pipeline is closed
            try:
                staged = [self._uploads.stage(frame) for frame in frames]
                table, call.leases = self._uploads.locate(staged, {}, streams)
                call.frames = staged
                rounds = []
                for first in range(0, len(frames), self._detection.capacity):
                    part = table[first : first + self._detection.capacity]
                    rounds.append(self._launch_round(call, self._detection, part))
                call.done.record(self._session.stream)
                launched = perf_counter()
            except BaseException:
                self._give_up(call)
                raise
        host_ms = (launched - begun) * 1e3
        return PendingCall(call, lambda: self._finish_detection(call, rounds, host_ms), self._abandon)

    def _launch_round(self, call: Call, detection: DeviceDetection, table: NDArray[np.void]) -> Round:
        """The detector on frames that fit into one run of it; behind it each pose model, on what it may have found."""
        detected = call.detected_chunk(detection.new_chunk)
        detection.launch(detected, table)
        ran: list[list[Ran]] = []
        for number, stage in enumerate(self._stages):
            expected, done = self._recent[number].expected(len(table)), 0
            ran.append([])
            while done < expected:
                if done:
                    detection.plan_further(detected, number, done)
                chunk, size = call.chunk(number, stage.new_chunk), stage.size_for(expected - done)
                stage.launch_recorded(chunk, size)
                ran[-1].append(Ran(chunk, size))
                done += size
            if len(ran[-1]) > 1:
                detection.rewind(number)
        return detected, ran

    def _finish_detection(self, call: Call, rounds: Sequence[Round], host_ms: float) -> DetectedPoses:
        """Wait; if more was found than was expected, run the rest and wait again; hand out copies."""
        asked = perf_counter()
        with self._session, cuda_errors(f"running {self._name} on {self.engine.device}"):
            self._wait(call)
            waited = perf_counter()
            assert self._detection is not None
            found = [one for detected, _ in rounds for one in self._detection.found(detected)]
            owners, boxes, box_scores, labels = joined(found)
            outputs, missing = self._sort_out(rounds, boxes, owners, labels)
            timings = self._timings(call, host_ms, asked, waited)
            if missing:
                outputs += self._run_further(call, boxes, owners, missing)
                timings = replace(timings, network=timings.network + (perf_counter() - waited) * 1e3)
            self._release(call)
        keypoints, scores = self._table.join(len(boxes), outputs)
        return DetectedPoses(keypoints, scores, timings, owners, boxes, box_scores, labels)

    def _sort_out(
        self,
        rounds: Sequence[Round],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],
        labels: NDArray[np.int32],
    ) -> tuple[list[PartOutput], list[Share]]:
        """What has been run for which detections, in copies, and the shares for which nothing has."""
        outputs: list[PartOutput] = []
        missing: list[Share] = []
        end = frames = 0
        for detected, ran in rounds:
            frames += detected.count
            begin, end = end, int(np.searchsorted(owners, frames))
            shares = {share.model: share for share in self._table.shares_of_labels(labels[begin:end], self._labels)}
            for model, runs in enumerate(ran):
                share = shares.get(model)
                self._recent[model].saw(detected.count, 0 if share is None else len(share.rows))
                if share is None:
                    continue
                share = share._replace(rows=share.rows + begin)
                for chunk, size in runs:
                    done, share = share.part(slice(0, size)), share.part(slice(size, None))
                    results = chunk.results[: len(done.rows)].copy()
                    outputs.append((done, results[:, :, :2], results[:, :, 2]))
                if len(share.rows):
                    missing.append(croppable(boxes, share, self._stages[model].spec))
        return outputs, missing

    def _run_further(
        self, call: Call, boxes: NDArray[np.float32], owners: NDArray[np.int32], missing: Sequence[Share]
    ) -> list[PartOutput]:
        """More was found than was expected: the rest, planned by the host. The call still has its frames."""
        call.rewind()
        jobs = self._launch(call, call.frames, boxes, owners, missing, None)
        self._look(jobs)
        self._wait(call)
        return [job.output() for job in jobs]

    # Calls ------------------------------------------------------------------------------------------

    def _acquire(self) -> Call:
        if self._closed:
            raise EngineError(f"the pipeline of {self._name} is closed: open a new Predictor")
        try:
            call = self._calls.pop()
        except IndexError:
            raise EngineError(f"{MOST_PENDING} calls are under way already: finish one before the next") from None
        try:
            call.begin()
        except BaseException:
            self._calls.appendleft(call)
            raise
        return call

    def _wait(self, call: Call) -> None:
        if self._closed:
            raise EngineError(f"the pipeline of {self._name} was closed before this call was finished")
        call.done.synchronize()

    def _release(self, call: Call) -> None:
        """The GPU has finished the call."""
        call.settle()
        self._calls.append(call)  # the next call takes this one, so that a loop touches the same memory

    def _give_up(self, call: Call) -> None:
        """Whatever is queued reads the caller's frames and our pinned memory."""
        with contextlib.suppress(Exception):
            self._session.wait_for_all()
        self._release(call)

    def _abandon(self, call: Call) -> None:
        """Nobody wants the results; who takes this memory next waits for the GPU first. Comes from any thread."""
        if not self._closed:
            self._calls.appendleft(call)

    def _timings(self, call: Call, host_ms: float, asked: float, waited: float) -> Timings:
        """With graphs: host work until the last launch, the wait, host work after it; see Timings."""
        if self._session.use_graphs:
            return Timings(crop=host_ms, network=(waited - asked) * 1e3, decode=(perf_counter() - waited) * 1e3)
        detect = sum((self._session.elapsed(chunk.marks)[0] for chunk in call.used_detected if chunk.marks), 0.0)
        stages = [self._session.elapsed(chunk.marks) for chunk in call.used if chunk.marks]
        crop, network, decode = (float(sum(times)) for times in zip(*stages, strict=True)) if stages else (0.0,) * 3
        return Timings(crop=crop, network=network, decode=decode, detect=detect)

    def close(self) -> None:
        """Wait for the GPU, then free everything."""
        if self._closed:
            return
        self._closed = True
        with self._session:
            try:
                self._session.settle(self._name)
            finally:
                engines = [stage.engine for stage in self._stages]
                if self._detection is not None:
                    engines.append(self._detection.engine)
                self._stages, self._detection = [], None  # and with them whatever is bound to the engines
                self._calls.clear()
                for engine in engines:
                    engine.close()
                del self._uploads
                self._session.free()


def _windows(plans: Sequence[HostPlan]) -> dict[int, Window]:
    """For each frame the smallest rectangle around what the plans read of it."""
    windows: dict[int, Window] = {}
    for plan in plans:
        for number, window in plan.windows.items():
            other = windows.get(number, (0, 0, 0, 0))
            if other[0] >= other[2]:
                windows[number] = window
            elif window[0] < window[2]:
                windows[number] = (
                    min(window[0], other[0]),
                    min(window[1], other[1]),
                    max(window[2], other[2]),
                    max(window[3], other[3]),
                )
    return windows
