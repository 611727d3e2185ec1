"""FrameClock: frames with time stamps on the even grid of a video."""

from __future__ import annotations

__all__ = ["MAX_GAP", "SKEW", "FrameClock"]

MAX_GAP = 5.0  # s; a longer pause is not filled with copies of a frame, the recording goes on in a new file
SKEW = 2  # frames; how far a recording may be ahead of or behind the time stamps before frames are repeated or left out


class FrameClock:
    """Places frames with time stamps on the even grid of a video with a fixed rate, so that it plays in real time.

    Frames that come a little early or late (up to ``SKEW`` frames) are written once each, as they come. Beyond that,
    the frame before is repeated for those that are missing, and a frame that is too many is left out.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._start: float | None = None
        self._last = 0.0
        self._written = 0

    def copies(self, time: float) -> int | None:
        """How often something is written for the frame taken at ``time``, s.

        Returns:
            0: leave it out; 1: write it; n: write the frame before n - 1 times, then this one; None: the clock was set
            back, or stood for longer than ``MAX_GAP``: begin a new file, with a new clock.
        """
        if self._start is None:
            self._start = self._last = time
            self._written = 1
            return 1
        if not -1.0 <= time - self._last <= MAX_GAP:
            return None
        self._last = time
        missing = round((time - self._start) * self._fps) - self._written
        if missing < -SKEW:
            return 0
        count = 1 if missing < SKEW else 1 + missing
        self._written += count
        return count
