"""NvdecReader against a stand-in of PyNvVideoCodec: our calls, the copy, the times. The hardware is unproven."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgepose.errors import EngineError, MissingDependencyError, SourceError
from edgepose.sources.nvdec import NvdecReader


class Decoded:
    """A frame in a buffer of the decoder's, which the next one overwrites."""

    def __init__(self, buffer: np.ndarray, pts: int) -> None:
        self.buffer, self._pts = buffer, pts

    def getPTS(self) -> int:
        return self._pts


class StandIn:
    """Both modules, as far as the reader calls them."""

    def __init__(self, frames: int = 3, dtype: Any = np.uint8) -> None:
        self.calls: list[Any] = []
        self.synchronized = 0
        buffer = np.zeros((4, 6, 3), dtype)

        class Demuxer:
            def __iter__(self) -> Iterator[int]:
                return iter(range(frames))

            GetNvCodecId = staticmethod(lambda: "h264")
            GetTimebaseNum = staticmethod(lambda: 1)
            GetTimebaseDen = staticmethod(lambda: 90_000)
            FrameRate = staticmethod(lambda: 30.0)

        def decode(packet: int) -> list[Decoded]:
            buffer[:] = (10 * packet + 1, 10 * packet + 2, 10 * packet + 3)  # RGB
            return [Decoded(buffer, 126_000 + 3000 * packet)]

        def create_demuxer(**arguments: Any) -> Demuxer:
            self.calls.append(("CreateDemuxer", arguments))
            return Demuxer()

        def create_decoder(**arguments: Any) -> Any:
            self.calls.append(("CreateDecoder", arguments))
            return SimpleNamespace(Decode=decode)

        self.codec: Any = ModuleType("PyNvVideoCodec")
        self.codec.CreateDemuxer, self.codec.CreateDecoder = create_demuxer, create_decoder
        self.codec.OutputColorType = SimpleNamespace(RGB="RGB")
        self.cupy: Any = ModuleType("cupy")
        self.cupy.uint8, self.cupy.ascontiguousarray = np.uint8, np.ascontiguousarray
        self.cupy.from_dlpack = lambda decoded: decoded.buffer
        self.cupy.cuda = SimpleNamespace(
            Device=Entered,
            Stream=lambda non_blocking: Entered(77, synchronize=self._synchronize),
            runtime=SimpleNamespace(free=lambda pointer: None),
            driver=SimpleNamespace(ctxGetCurrent=lambda: 55),
        )

    def _synchronize(self) -> None:
        self.synchronized += 1


class Entered:
    def __init__(self, ptr: int, synchronize: Any = None) -> None:
        self.ptr, self.synchronize = ptr, synchronize

    def __enter__(self) -> Entered:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> StandIn:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", stand_in.codec)
    monkeypatch.setitem(sys.modules, "cupy", stand_in.cupy)
    return stand_in


def test_frames_are_copied_turned_to_bgr_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = install(monkeypatch, StandIn())
    reader = NvdecReader("clip.mp4", gpu=1, live=False)
    captured = list(iter(reader.read, None))
    assert [item.frame[0, 0].tolist() for item in captured] == [[3, 2, 1], [13, 12, 11], [23, 22, 21]]
    assert all(item.frame.flags.c_contiguous for item in captured)
    assert [item.time for item in captured] == pytest.approx([0, 1 / 30, 2 / 30])
    assert stand_in.synchronized == 3  # each is complete before the decoder goes on
    reader.close()
    assert stand_in.calls == [
        ("CreateDemuxer", {"filename": "clip.mp4"}),
        (
            "CreateDecoder",
            {
                "gpuid": 1,
                "codec": "h264",
                "cudacontext": 55,
                "cudastream": 77,
                "usedevicememory": True,
                "outputColorType": "RGB",
            },
        ),
    ]


def test_live_frames_have_no_time_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, StandIn())
    captured = NvdecReader("rtsp://camera", gpu=0, live=True).read()
    assert captured is not None
    assert captured.time is None


def test_frames_of_more_than_8_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, StandIn(dtype=np.uint16))
    with pytest.raises(SourceError, match=r"uint16 frames.*backend='pyav'"):
        NvdecReader("clip.mp4", gpu=0, live=False).read()


def test_a_file_without_frames_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, StandIn(frames=0))
    with pytest.raises(SourceError, match="not one frame"):
        NvdecReader("clip.mp4", gpu=0, live=False).read()


def test_errors_of_the_library_name_the_source_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = install(monkeypatch, StandIn())

    def fails(**_: Any) -> None:
        raise RuntimeError("codec not supported")

    stand_in.codec.CreateDecoder = fails
    with pytest.raises(SourceError, match=r"rtsp://\*\*\*@camera .* codec not supported"):
        NvdecReader("rtsp://me:secret@camera", gpu=0, live=True)


def test_without_a_driver_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, StandIn())

    def no_driver(name: str) -> None:
        raise RuntimeError("libnvidia-encode.so was not found\nmore")

    monkeypatch.setattr("edgepose.sources.nvdec.importlib.import_module", no_driver)
    with pytest.raises(EngineError, match=r"does not load: libnvidia-encode\.so was not found\. It needs"):
        NvdecReader("clip.mp4", gpu=0, live=False)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(MissingDependencyError, match=r"edgepose\[nvdec\]"):
        NvdecReader("clip.mp4", gpu=0, live=False)
