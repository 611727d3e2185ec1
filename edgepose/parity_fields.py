"""What the parity reports of pose models and of detectors share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edgepose.jsonfields import Reader, read_dataclass

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CommonLimits", "ReportFields"]


class CommonLimits(Protocol):
    """The limits that every kind of report has."""

    @property
    def px_median(self) -> float: ...
    @property
    def px_p99(self) -> float: ...
    @property
    def score_error(self) -> float: ...


class ReportFields:
    """What the reports of pose models and of detectors share; a subclass is a frozen dataclass and sets READERS."""

    READERS: ClassVar[Mapping[str, Reader]]  # of each field

    px_median: float
    px_p99: float
    score_error: float
    not_finite: int
    convolutions: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``from_dict``'s inverse."""
        return {**asdict(self), "convolutions": dict(self.convolutions)}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read a report.

        Raises:
            FieldError: a key is missing or unknown, or a value of the wrong kind.
        """
        return read_dataclass(cls, data, cls.READERS)

    def _beyond(
        self, limits: CommonLimits, not_finite: str, own: Sequence[tuple[float, float, str]]
    ) -> tuple[str, ...]:
        """What is beyond the limits, in words; ``own``: values, limits and words of the subclass."""
        checks = (
            (self.not_finite, 0, not_finite),
            (self.px_median, limits.px_median, f"median error {self.px_median:.3g} px (limit {limits.px_median:g})"),
            (self.px_p99, limits.px_p99, f"99 % within {self.px_p99:.3g} px (limit {limits.px_p99:g})"),
            *own,
            (
                self.score_error,
                limits.score_error,
                f"scores differ by {100 * self.score_error:.3g} % (limit {100 * limits.score_error:g} %)",
            ),
        )
        return tuple(text for value, limit, text in checks if not value <= limit)  # NaN is a problem
