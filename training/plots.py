"""Pictures of an evaluation: the PCK curve, the error of each landmark, the worst crops. Needs matplotlib.

Figures are drawn without pyplot, so nothing global is set, and no window is ever opened.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.errors import MissingDependencyError
from edgepose.spec import ModelSpec
from edgepose.training import bootstrap, metrics
from edgepose.training.coco import read_frame
from edgepose.training.evaluate import Evaluation

__all__ = ["check_matplotlib", "error_by_keypoint", "pck_curve", "worst_crops"]

CURVE = np.linspace(0, 0.2, 81)  # thresholds of the curve, of the longer side
MARKED = (0.05, 0.1, 0.2)
MAX_GROUPS = 13  # lines that can still be told apart
MAX_ROWS = 60
_COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ee8866",
    "#44bb99",
    "#999933",
    "#882255",
    "#77aadd",
    "#ffaabb",
    "#bbbbbb",
)  # fmt: skip  (Paul Tol's bright and light schemes, which colour-blind readers can tell apart)
_LEAST = 0.05  # %; smaller errors are drawn at the border
_TRUTH, _FOUND = "#00e676", "#ff2d95"
_STYLE = {"font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def check_matplotlib() -> None:
    """Raise MissingDependencyError if matplotlib cannot be imported: to be asked before the work, not after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"the plots of a report need matplotlib ({error}): pip install 'edgepose[train]', or ask for --json only"
        ) from error


def pck_curve(evaluation: Evaluation, spec: ModelSpec, *, title: str = "", seed: int = 0) -> bytes:
    """PNG: PCK against the threshold, a line for each group of landmarks, and their mean with its 95 % band."""
    check_matplotlib()
    import matplotlib

    distances = evaluation.distances
    curve = [metrics.Statistic("", distances.relative < np.float32(t), distances.boxed, macro=True) for t in CURVE]
    images = evaluation.images()
    mean = [metrics.figure(s) for s in curve]
    band = [bootstrap.interval(r.figures, len(np.unique(images))) for r in bootstrap.resample(curve, images, seed=seed)]
    by_keypoint = np.array([metrics.figure_by_keypoint(s) for s in curve])  # (thresholds, K)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(7.5, 5)
        axes = figure.add_subplot()
        groups = landmark_groups(spec)
        for color, (name, channels) in zip(_COLORS, groups.items(), strict=False):
            lines = by_keypoint[:, channels]
            labelled = ~np.isnan(lines[0])
            if labelled.any():
                axes.plot(100 * CURVE, lines[:, labelled].mean(axis=1), color=color, lw=1.5, label=name)
        if not groups:
            every = axes.plot(100 * CURVE, by_keypoint, color=_COLORS[0], lw=0.8, alpha=0.5)
            every[0].set_label("each landmark")
        low, high = np.array(band).T
        axes.fill_between(100 * CURVE, low, high, color="black", alpha=0.13, lw=0, label="mean, 95 % interval")
        axes.plot(100 * CURVE, mean, color="black", lw=2.4, label=f"mean of {_count(by_keypoint)} landmarks")
        for threshold in MARKED:
            value = mean[int(np.abs(CURVE - threshold).argmin())]
            axes.axvline(100 * threshold, color="0.75", lw=0.8, ls=(0, (4, 3)), zorder=0)
            side = "left" if threshold < CURVE[-1] else "right"
            text = f" PCK@{threshold:g} = {value:.3f} "
            axes.annotate(text, (100 * threshold, 0.03), ha=side, color="0.3", fontsize=9)
        axes.set(xlim=(0, 100 * CURVE[-1]), ylim=(0, 1.02), ylabel="share of landmarks within the threshold")
        axes.set_xlabel("threshold, % of the box's longer side")
        axes.set_title(title or f"{spec.name}: PCK", loc="left", fontsize=11, fontweight="bold")
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.09), frameon=True, framealpha=0.95, edgecolor="0.9")
        return _png(figure)


def error_by_keypoint(evaluation: Evaluation, spec: ModelSpec, *, title: str = "") -> bytes:
    """PNG: the distribution of each landmark's error over the box's longer side, on a logarithmic axis.

    A spec with more than 60 landmarks gets a row for each of its categories.
    """
    check_matplotlib()
    import matplotlib

    rows = _rows(evaluation, spec)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(7.5, max(2.6, 1.4 + 0.42 * len(rows)))
        axes = figure.add_subplot()
        rng = np.random.default_rng(0)
        for row, (_, color, errors) in enumerate(rows):
            # An error of 0 has no logarithm, and NaN is as bad as can be.
            values = np.clip(100 * np.nan_to_num(errors, nan=1.0), _LEAST, 100)
            shown = values if len(values) <= 500 else rng.choice(values, 500, replace=False)
            opacity = 0.7 if len(shown) < 100 else 0.25
            axes.scatter(shown, row + rng.uniform(-0.28, 0.28, len(shown)), s=9, color=color, alpha=opacity, lw=0)
            axes.boxplot(
                values, positions=[row], orientation="horizontal", widths=0.62, showfliers=False, patch_artist=True,
                boxprops={"facecolor": color, "alpha": 0.3, "edgecolor": color}, whiskerprops={"color": color},
                medianprops={"color": "black", "lw": 1.8}, capprops={"color": color}, manage_ticks=False,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlim=(_LEAST, 100), ylim=(len(rows) - 0.4, -0.6))
        axes.set_yticks(range(len(rows)), [f"{name}  (n = {len(errors)})" for name, _, errors in rows], fontsize=9.5)
        ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.tick_params(axis="y", length=0)
        axes.minorticks_off()
        for threshold in MARKED:
            axes.axvline(100 * threshold, color="0.6", lw=0.8, ls=(0, (4, 3)), zorder=0)
        axes.set_xlabel("error, % of the box's longer side\n(box: quartiles; black: median; dashed: 5, 10 and 20 %)")
        axes.set_title(title or f"{spec.name}: error by landmark", loc="left", fontsize=11, fontweight="bold")
        axes.grid(axis="x", color="0.93")
        axes.set_axisbelow(True)
        return _png(figure)


def worst_crops(evaluation: Evaluation, spec: ModelSpec, *, count: int = 16, title: str = "") -> bytes:
    """PNG: the objects with the largest mean error, worst first: labels, predictions, and lines that join them."""
    check_matplotlib()
    import matplotlib
    from matplotlib.lines import Line2D

    rows = worst_objects(evaluation, count)
    columns = min(4, max(1, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    with matplotlib.rc_context(_STYLE):
        figure = _figure(2.9 * columns, 3.35 * lines + 0.55)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, row in zip(grid.flat, rows, strict=False):
            _draw_object(axes, evaluation, spec, row)
        marks = [
            Line2D([], [], marker="o", color="none", markerfacecolor=_TRUTH, markeredgecolor="black", label="label"),
            Line2D(
                [], [], marker="X", color="none", markerfacecolor=_FOUND, markeredgecolor="black", label="prediction"
            ),
        ]
        figure.legend(handles=marks, loc="outside upper right", ncols=2, frameon=False)
        figure.suptitle(
            title or f"{spec.name}: the {len(rows)} worst of {len(evaluation.annotations)} objects",
            x=0.01, ha="left", fontsize=11, fontweight="bold",
        )  # fmt: skip
        return _png(figure)


def worst_objects(evaluation: Evaluation, count: int) -> list[int]:
    """The numbers of the objects with the largest mean error over the longer side, worst first."""
    distances = evaluation.distances
    total = np.where(distances.boxed, np.nan_to_num(distances.relative, nan=1.0), 0).sum(axis=1, dtype=np.float64)
    labelled = distances.boxed.sum(axis=1)
    order = np.argsort(-total / np.maximum(labelled, 1), kind="stable")
    return [int(row) for row in order if labelled[row]][:count]


def landmark_groups(spec: ModelSpec) -> dict[str, list[int]]:
    """Landmarks that share a line, by its name: those of a category of the spec; else left and right of a part; else
    the mirror pairs of numbered landmarks. Empty if these are more than can be told apart.
    """
    if spec.categories:
        return {name: list(range(begin, end)) for name, (begin, end) in spec.categories.items()}
    groups: dict[str, list[int]] = {}
    for k, name in enumerate(spec.keypoint_names):
        part = " ".join(word for word in name.replace("_", " ").split() if word not in ("left", "right"))
        groups.setdefault(part or name, []).append(k)
    if len(groups) > MAX_GROUPS:
        pairs = sorted({tuple(sorted({k, mirrored})) for k, mirrored in enumerate(spec.flip_indices)})
        groups = {" + ".join(spec.keypoint_names[k] for k in pair): list(pair) for pair in pairs}
    return groups if len(groups) <= MAX_GROUPS else {}


def _rows(evaluation: Evaluation, spec: ModelSpec) -> list[tuple[str, str, npt.NDArray[np.float32]]]:
    """Name, colour and relative errors of each row of the box plot: a landmark, or a group of many."""
    distances, groups = evaluation.distances, landmark_groups(spec)
    colors = {k: _COLORS[number % len(_COLORS)] for number, members in enumerate(groups.values()) for k in members}
    labelled = np.flatnonzero(distances.boxed.any(axis=0)).tolist()
    if len(labelled) > MAX_ROWS and groups:
        members = {name: [k for k in channels if k in set(labelled)] for name, channels in groups.items()}
    else:
        members = {spec.keypoint_names[k]: [k] for k in labelled}
    return [
        (name, colors.get(ks[0], _COLORS[0]), distances.relative[:, ks][distances.boxed[:, ks]])
        for name, ks in members.items()
        if ks
    ]


def _draw_object(axes: Any, evaluation: Evaluation, spec: ModelSpec, row: int) -> None:
    annotation, distances = evaluation.annotations[row], evaluation.distances
    seen = np.flatnonzero(distances.visible[row])
    truth = np.full((spec.num_keypoints, 2), np.nan)
    begin = annotation.first_channel
    truth[begin : begin + len(annotation.keypoints)] = annotation.keypoints
    found = evaluation.keypoints[row]
    crop, origin, scale = _crop(read_frame(annotation), annotation.box)
    axes.imshow(crop[..., ::-1], interpolation="bilinear")
    axes.set(xlim=(-0.5, crop.shape[1] - 0.5), ylim=(crop.shape[0] - 0.5, -0.5))
    for k in seen:
        (x, y), (u, v) = (truth[k] - origin) * scale, (found[k] - origin) * scale
        axes.plot([x, u], [y, v], color="black", lw=3.2, solid_capstyle="round")
        axes.plot([x, u], [y, v], color="#ffd54f", lw=1.7, solid_capstyle="round")
    for points, color, marker, size in ((truth, _TRUTH, "o", 34), (found, _FOUND, "X", 40)):
        xy = (points[seen] - origin) * scale
        axes.scatter(*xy.T, s=size, c=color, marker=marker, edgecolors="black", lw=0.7, zorder=3, clip_on=True)
    errors = np.nan_to_num(distances.relative[row, seen], nan=np.inf)
    worst = seen[errors.argmax()]
    mean, pixels = 100 * float(errors.mean()), float(distances.pixels[row, seen].mean())
    text = f"#{row} {annotation.category}: {mean:.1f} %, {pixels:.0f} px"
    text += f"\nworst: {spec.keypoint_names[worst]}, {100 * float(errors.max()):.0f} %"
    axes.text(0.5, -0.03, text, transform=axes.transAxes, fontsize=8.5, ha="center", va="top", linespacing=1.3)


def _crop(
    frame: npt.NDArray[np.uint8], box: npt.NDArray[np.float32], side: int = 320
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], float]:
    """A square around the box, (side, side, 3) BGR, grey beyond the frame; the square's origin in px, and its scale."""
    centre = (box[:2] + box[2:]).astype(np.float64) / 2
    reach = 0.62 * float((box[2:] - box[:2]).max())
    scale = side / (2 * reach)
    origin = centre - reach
    matrix = np.array([[scale, 0, -scale * origin[0]], [0, scale, -scale * origin[1]]])
    if scale < 0.5:  # warpAffine does not average: shrink by a whole factor first
        step = int(0.5 / scale) + 1
        small = cv2.resize(frame, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
        matrix[:, :2] *= step
        frame = small
    picture = cv2.warpAffine(frame, matrix, (side, side), flags=cv2.INTER_LINEAR, borderValue=(235, 235, 235))
    return np.asarray(picture, np.uint8), origin, scale


def _count(by_keypoint: npt.NDArray[np.float64]) -> int:
    return int((~np.isnan(by_keypoint[0])).sum())


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
