"""How the plots of the benchmarks look, and how they are written: the same bytes for the same record.

White ground, so that they can be read on a dark page too; 9 inches wide, which a README shows at 900 px.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgepose.benchmarks.records import Record
from edgepose.errors import InputError, MissingDependencyError
from edgepose.files import write_all_atomically

__all__ = [
    "GREY",
    "OURS_COLOUR",
    "STAGE_COLOURS",
    "WIDTH",
    "check_matplotlib",
    "figure",
    "from_zero",
    "line_of",
    "number",
    "palette",
    "plain_ticks",
    "save",
    "style",
    "titles",
]

WIDTH = 9.0  # inches
# Okabe and Ito's colours ("Color Universal Design", 2008), which colour-blind readers can tell apart
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#A6A6A6"
OURS_COLOUR = BLUE
STAGE_COLOURS = {
    "upload": PURPLE,
    "crop": ORANGE,
    "network": BLUE,
    "decode": GREEN,
    "download": SKY,
    "rest": "#555555",
}
LIBRARIES = {"edgepose": BLUE, "pytorch": VERMILION, "rtmlib": PURPLE, "onnxruntime": GREEN, "openvino": ORANGE}
MARKERS = "osD^v<>P*X"
DPI = 200
_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "svg.hashsalt": "edgepose",
    "svg.fonttype": "path",
}


def check_matplotlib() -> None:
    """Raise MissingDependencyError if matplotlib cannot be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"plots need matplotlib ({error}): pip install 'edgepose[bench]'") from error


@contextmanager
def style() -> Iterator[None]:
    """What is drawn and saved inside looks alike; nothing global stays set."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def figure(height: float) -> Any:
    """A figure of WIDTH x height inches without pyplot: no window is opened, and none is left behind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure((WIDTH, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def titles(drawn: Any, title: str, record: Record, caption: str = "") -> None:
    """The title above all; below, small, the caption, and the device, date and commit."""
    import textwrap

    environment = record.environment
    drawn.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    source = (
        f"{record.device}, {str(environment.get('date', ''))[:10]}, commit {environment.get('commit') or 'unknown'}"
    )
    lines = [*textwrap.wrap(caption, 118), source]
    drawn.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9, color="#555555")


def save(record: Record, folder: Path, what: str, drawn: Any) -> list[Path]:
    """Write ``suite[-what]--device.png`` and ``.svg`` beside the record's file.

    Raises:
        InputError: they cannot be written.
    """
    suite, _, rest = Path(record.file_name).stem.partition("--")
    stem = f"{suite}-{what}--{rest}" if what else f"{suite}--{rest}"
    files: dict[Path, bytes] = {}
    # No date and no program's version inside, or the same record would give other bytes
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        drawn.savefig(buffer, format=suffix, dpi=DPI, facecolor="white", metadata=metadata)
        files[folder / f"{stem}.{suffix}"] = buffer.getvalue()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_all_atomically(files)
    except OSError as error:
        raise InputError(f"plots cannot be written to {folder}: {error.strerror}") from None
    return list(files)


def line_of(way: str, index: int) -> dict[str, Any]:
    """Colour by library, marker by way, dashes by precision: no two depend on colour alone.

    Args:
        way: ``rtmlib, openvino int8``.
        index: of the way among those that are drawn together.
    """
    # The first that a name contains, ours first: "onnxruntime batched", "pytorch, CUDA graph"
    colour = next((colour for library, colour in LIBRARIES.items() if library in way), "#444444")
    dashes = {"int8": "--", "fp16": "-"}.get(way.rpartition(" ")[2], "-")
    return {"color": colour, "linestyle": dashes, "marker": MARKERS[index % len(MARKERS)]}


def palette(index: int) -> str:
    """A colour for the n-th of a few things that have none of their own."""
    return (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#000000", YELLOW)[index % 8]


def from_zero(axes: Any) -> None:
    """Let the y axis begin at 0, so that heights can be compared, and end a little above the data."""
    axes.set_ylim(0, 1.08 * axes.dataLim.y1)


def plain_ticks(axis: Any) -> None:
    """Of a logarithmic axis: 1, 2, 5, 10, ... instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def number(value: float) -> str:
    """Three digits, never as 1e+03: 0.0123, 4.56, 78.9, 1234."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
