"""Files and URLs decoded by the GPU's video engine through PyNvVideoCodec (an extra): device frames.

Written against the API of PyNvVideoCodec 2.2 (``CreateDemuxer``, ``CreateDecoder``, ``Decode``, ``getPTS``, DLPack).
UNPROVEN: no machine with its hardware has run this yet; tests check the calls against a stand-in.

The decoder's frames lie in buffers that it uses again, and are RGB: each is copied once on the device, which turns it
to BGR at the same time. The display matrix is not read: a video taken upright by a phone lies on its side here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from edgepose.errors import EngineError, MissingDependencyError, SourceError
from edgepose.sources.reader import Captured, without_password

__all__ = ["NvdecReader"]


class NvdecReader:
    """The video stream of a file or URL, as CuPy arrays (H, W, 3) uint8 BGR in the memory of ``cuda:<gpu>``.

    Raises:
        MissingDependencyError: PyNvVideoCodec or CuPy is not installed.
        EngineError: PyNvVideoCodec does not load on this machine.
        SourceError: it does not open, the GPU does not decode its codec, or its frames are not 8-bit.
    """

    backend = "nvdec"
    note = None

    def __init__(self, target: str, *, gpu: int, live: bool) -> None:
        self._codec, self._cupy = _import_codec(), _import_cupy()
        self.live = live
        self._name = without_password(target)
        self._gpu = gpu
        self._cancelled = False
        self._count = 0
        try:
            with self._cupy.cuda.Device(gpu):
                self._cupy.cuda.runtime.free(0)  # makes the GPU's primary context, which CuPy and the engines use
                self._stream = self._cupy.cuda.Stream(non_blocking=True)
                self._demuxer = self._codec.CreateDemuxer(filename=target)
                self._decoder = self._codec.CreateDecoder(
                    gpuid=gpu,
                    codec=self._demuxer.GetNvCodecId(),
                    cudacontext=self._cupy.cuda.driver.ctxGetCurrent(),
                    cudastream=self._stream.ptr,
                    usedevicememory=True,
                    outputColorType=self._codec.OutputColorType.RGB,
                )
                base = int(self._demuxer.GetTimebaseDen())
                self._tick = int(self._demuxer.GetTimebaseNum()) / base if base else 0.0
                self._fps = float(self._demuxer.FrameRate()) or 25.0
        except Exception as error:  # its own classes have no common base that is documented
            raise SourceError(f"{self._name} cannot be opened by NVDEC on cuda:{gpu}: {error}") from error
        self._first: int | None = None
        self._frames = self._decode()

    def read(self) -> Captured | None:
        """The next frame; it is complete, no stream is to be waited for."""
        try:
            captured = next(self._frames, None)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"{self._name} was lost by NVDEC: {error}") from error
        if captured is None and self._count == 0 and not self._cancelled:
            raise SourceError(f"{self._name} opens, but NVDEC decodes not one frame of it")
        return captured

    def _decode(self) -> Iterator[Captured]:
        for packet in self._demuxer:
            for decoded in self._decoder.Decode(packet):
                if self._cancelled:
                    return
                yield self._captured(decoded)

    def _captured(self, decoded: Any) -> Captured:
        number, self._count = self._count, self._count + 1
        with self._cupy.cuda.Device(self._gpu), self._stream:  # CuPy tells DLPack's producer this stream
            rgb = self._cupy.from_dlpack(decoded)
            if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != self._cupy.uint8:
                raise SourceError(
                    f"{self._name}: NVDEC gave {rgb.dtype} frames of the shape {rgb.shape} instead of (H, W, 3) uint8: "
                    "read it with backend='pyav'"
                )
            frame = self._cupy.ascontiguousarray(rgb[:, :, ::-1])
        # The reader's thread waits, not the consumer's; then the decoder may use its buffer again.
        self._stream.synchronize()
        return Captured(frame, None if self.live else self._time(decoded, number))

    def _time(self, decoded: Any, number: int) -> float:
        if not self._tick:
            return number / self._fps
        ticks = int(decoded.getPTS())
        if self._first is None:
            self._first = ticks
        return (ticks - self._first) * self._tick

    def cancel(self) -> None:
        """Ends a read at the next frame. Its demuxer has no time limit for a silent server."""
        self._cancelled = True

    def close(self) -> None:
        """Free decoder and demuxer: they have no close, they end with their last reference."""
        self._frames.close()  # type: ignore[attr-defined]  # it is a generator
        self._decoder = self._demuxer = None


def _import_codec() -> Any:
    try:
        return importlib.import_module("PyNvVideoCodec")
    except ImportError as error:
        raise MissingDependencyError(
            "backend='nvdec' needs PyNvVideoCodec and an NVIDIA driver: pip install 'edgepose[nvdec]'; "
            "or decode on the CPU with backend='pyav' or 'opencv'"
        ) from error
    except (RuntimeError, OSError) as error:  # RuntimeError: what 2.2 raises without the driver's libraries
        first = str(error).strip().partition("\n")[0]
        raise EngineError(
            f"PyNvVideoCodec is installed, but does not load: {first}. It needs an NVIDIA driver with libnvcuvid; "
            "decode on the CPU with backend='pyav' or 'opencv'"
        ) from error


def _import_cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise MissingDependencyError(
            "backend='nvdec' hands frames over as CuPy arrays: pip install 'edgepose[cuda12]' or 'edgepose[cuda13]'"
        ) from error
