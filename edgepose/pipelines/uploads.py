"""Frames of host memory on their way to the GPU: copied to pinned memory, and up from there beside what runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepose.kernels._call import FRAME
from edgepose.pipelines.device_frames import FrameView, stream_address
from edgepose.pipelines.session import Session

__all__ = ["FrameUploads", "Lease", "Located", "Window"]

Window = tuple[int, int, int, int]  # xyxy, frame px, end exclusive
PIECE = 1 << 20  # bytes of the frame that are copied to pinned memory while the piece before is being uploaded
FIRST_ROOM = 1920 * 1080 * 3  # bytes of the first slot; what is larger makes it grow


class Located(NamedTuple):
    """Where a frame, or a window of it, lies in device memory.

    Attributes:
        address: of the first channel of pixel (left, top).
        row, pixel, channel: bytes to the next one.
        left, top: where the window begins, px.
    """

    address: int
    row: int
    pixel: int
    channel: int
    left: int = 0
    top: int = 0


class _Slot:
    """Room for one frame, twice: in pinned memory and in device memory.

    Attributes:
        uploaded: event behind the last upload, on the copy stream.
        settled: whether the host knows that the upload has taken place.
    """

    def __init__(self, uploaded: Any) -> None:
        self.room = 0
        self.uploaded = uploaded
        self.settled = True

    def grow(self, session: Session, room: int) -> None:
        """Exchange the memory for more, or, if there is none, keep what is there and raise."""
        staging, target = session.pinned(room), session.bytes_for_uploads(room)
        self.staging, self.target, self.room = staging, target, room
        self.staging_address, self.target_address = staging.ctypes.data, int(target.data.ptr)


class Lease:
    """A slot for as long as somebody refers to this; a call that uses it keeps it until the GPU has finished."""

    def __init__(self, slot: _Slot, free: SimpleQueue[_Slot]) -> None:
        self._slot, self._free = slot, free

    @property
    def uploaded(self) -> Any:
        """The event that work on the frame has to wait for."""
        return self._slot.uploaded

    def settle(self) -> None:
        """The host has waited for work that came after the upload."""
        self._slot.settled = True

    def __del__(self) -> None:
        self._free.put(self._slot)  # SimpleQueue's put may be called from anywhere, a garbage collection included


class FrameUploads:
    """Slots for frames, as many as are in use at once; they are kept, and grow to the largest frames."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._returned: SimpleQueue[_Slot] = SimpleQueue()
        self._free: list[_Slot] = []
        first = _Slot(session.event())
        first.grow(session, FIRST_ROOM)
        self._free.append(first)

    def send(self, frame: FrameView, window: Window) -> tuple[Located, Lease]:
        """Upload the window xyxy of a host frame; the frame has been read when this returns.

        Rows are packed, but to whole 32-bit words: that is how the crop kernel likes to read.
        """
        assert frame.host is not None
        left, top, right, bottom = window
        view = frame.host[top:bottom, left:right]
        rows, width, channels = view.shape
        row_bytes = -(-width * channels // 4) * 4
        height, full_width = frame.host.shape[:2]
        whole = height * (-(-full_width * channels // 4) * 4)  # a box may come nearer every frame
        slot = self._take(rows * row_bytes, whole)
        lease = Lease(slot, self._returned)
        pixels = np.ndarray(view.shape, np.uint8, slot.staging.data, 0, (row_bytes, channels, 1))
        step = max(1, PIECE // max(row_bytes, 1))
        slot.settled = False
        try:
            for first in range(0, rows, step):
                piece = view[first : first + step]
                np.copyto(pixels[first : first + step], piece)
                start = first * row_bytes
                self._session.copy_up_beside(
                    slot.target_address + start, slot.staging_address + start, len(piece) * row_bytes
                )
        finally:  # also of a part: who takes the slot next waits for it
            slot.uploaded.record(self._session.copy_stream)
        _, pixel, channel = frame.strides
        address = slot.target_address + (channels - 1 if channel < 0 else 0)
        return Located(address, row_bytes, pixel, channel, left, top), lease

    def stage(self, frame: FrameView) -> FrameView:
        """A host frame, all of it, as a frame in device memory; one that is there already stays as it is."""
        if frame.host is None:
            return frame
        located, lease = self.send(frame, (0, 0, *frame.size))
        strides = (located.row, located.pixel, located.channel)
        return FrameView(frame.size, None, located.address, strides, lease=lease)

    def locate(
        self,
        frames: Sequence[FrameView],
        windows: Mapping[int, Window],  # of the frames in host memory, by their number
        streams: Sequence[Any] | None,  # for each frame the caller's stream that it is being written on, or None
    ) -> tuple[NDArray[np.void], list[Lease]]:
        """(B,) FRAME, for what runs on the session's stream, which waits until each of the frames is there.

        A host frame without a window is looked at by nobody, and is brought nowhere. Keep the leases until the GPU has
        finished, and settle them then.
        """
        table = np.zeros(len(frames), FRAME)
        leases: list[Lease] = []
        for number, frame in enumerate(frames):
            located, lease = Located(frame.address, *frame.strides), frame.lease
            if frame.host is not None:
                if number not in windows:
                    continue
                located, lease = self.send(frame, windows[number])
            if lease is not None:
                leases.append(lease)
                self._session.stream.wait_event(lease.uploaded)
            else:
                stream = None if streams is None else streams[number]
                writer = frame.stream if stream is None else stream_address(stream)
                if writer is not None:
                    self._session.wait_for_writer(writer)
            table[number] = (*located[:4], *frame.size, *located[4:])
        return table, leases

    def _take(self, needed: int, room: int) -> _Slot:
        """The smallest free slot with so many bytes; else the largest, grown to ``room``, or a new one."""
        while not self._returned.empty():
            self._free.append(self._returned.get_nowait())
        slot = min((s for s in self._free if s.room >= needed), key=lambda s: s.room, default=None)
        if slot is None:
            slot = max(self._free, key=lambda s: s.room, default=None)
        if slot is None:
            slot = _Slot(self._session.event())
            self._free.append(slot)
        if not slot.settled:  # a frame that was staged and never used: nobody has waited for its upload
            slot.uploaded.synchronize()
            slot.settled = True
        if slot.room < needed:
            slot.grow(self._session, room)  # raises: the slot is still free
        self._free.remove(slot)
        return slot
