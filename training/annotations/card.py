"""What the data cards show that can be computed: tables, and the drawing of the landmarks.

``python -m edgepose.training.annotations.card`` writes both anew, between the marks in each README.md and as
landmarks.svg beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.files import write_all_atomically
from edgepose.training.annotations import FOLDER, LABEL_SETS, labels, splits
from edgepose.training.garments import ABSENT, garment_spec

__all__ = ["diagram", "statistics", "with_statistics"]

BEGIN, END = "<!-- made by edgepose.training.annotations.card -->", "<!-- end of what is made -->"

# Garments on a canvas of 240 x 300: outlines as SVG paths, inner lines, and where their landmarks sit.
SHIRT = (
    "M92 48 Q120 68 148 48 L186 62 L222 176 L190 188 L172 124 L172 250 L68 250 L68 124 L50 188 L18 176 L54 62 Z",
    "M92 48 Q120 84 148 48 M54 62 L68 124 M186 62 L172 124",
    {0: (92, 48), 1: (148, 48), 2: (34, 182), 3: (206, 182), 6: (68, 250), 7: (172, 250)},
)
TROUSERS = (
    "M78 44 L162 44 L182 264 L132 264 L120 112 L108 264 L58 264 Z",
    "M76 58 L164 58 M120 58 L120 112",
    {4: (78, 44), 5: (162, 44), 6: (83, 264), 7: (157, 264)},
)
DRESS = (
    "M70 38 L98 34 Q120 84 142 34 L170 38 Q150 78 168 108 L156 152 L196 264 L44 264 L84 152 L72 108 Q90 78 70 38 Z",
    "M84 152 L156 152",
    {0: (98, 34), 1: (142, 34), 2: (79, 71), 3: (161, 71), 4: (84, 152), 5: (156, 152), 6: (44, 264), 7: (196, 264)},
)
GARMENTS = (("tops, outerwear", SHIRT), ("trousers, shorts", TROUSERS), ("dresses", DRESS))


def statistics(name: str) -> str:
    """Tables of a set of labels, in Markdown."""
    parts = {split: labels(name, split) for split in splits(name)}
    return "\n\n".join((_garments(parts), _landmarks(parts), _boxes(parts)))


def with_statistics(card: str, name: str) -> str:
    """A data card whose tables are made anew.

    Raises:
        InputError: it lacks the marks between which they stand.
    """
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(f"{name}: the data card must hold {BEGIN!r} and {END!r}")
    return f"{before}{begin}\n\n{statistics(name)}\n\n{end}{after}"


def diagram() -> str:
    """Where the landmarks sit, drawn on a top, trousers and a dress: SVG."""
    spec = garment_spec()
    names, colors = spec.keypoint_names, [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in spec.colors]
    shapes = []
    for place, (title, (outline, seams, points)) in enumerate(GARMENTS):
        lines = [
            f'<line x1="{points[a][0]}" y1="{points[a][1]}" x2="{points[b][0]}" y2="{points[b][1]}" '
            f'stroke="{colors[a]}" stroke-width="2.5" stroke-opacity="0.7"/>'
            for a, b in spec.skeleton
            if a in points and b in points
        ]
        dots = [_dot(x, y, k, colors[k]) for k, (x, y) in points.items()]
        shapes += [
            f'<g transform="translate({place * 270 + 20} 10)">',
            f'<path d="{outline}" fill="#e9edf2" stroke="#5b6673" stroke-width="2" stroke-linejoin="round"/>',
            f'<path d="{seams}" fill="none" stroke="#9aa5b1" stroke-width="1.5"/>',
            *lines,
            *dots,
            f'<text x="120" y="318" text-anchor="middle" font-weight="bold">{title}</text>',
            "</g>",
        ]
    legend = [
        f'<g transform="translate({30 + k // 2 * 200} {366 + k % 2 * 24})">'
        f'<circle r="6" fill="{color}" stroke="#222"/><text x="14" y="5">{k} {text}</text></g>'
        for k, (text, color) in enumerate(zip(names, colors, strict=True))
    ]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 830 410" width="830" height="410" '
            'font-family="Helvetica, Arial, sans-serif" font-size="15" fill="#222">',
            '<rect width="830" height="410" fill="#ffffff"/>',
            *shapes,
            *legend,
            "</svg>\n",
        ]
    )


def _dot(x: int, y: int, k: int, color: str) -> str:
    """A landmark with its number beside it: above a collar, below a hem, else on its own side."""
    side = -1 if k % 2 == 0 else 1
    dx, dy = {0: (5 * side, -13), 3: (0, 24)}.get(k // 2, (19 * side, 7))
    return (
        f'<circle cx="{x}" cy="{y}" r="7" fill="{color}" stroke="#222" stroke-width="1.5"/>'
        f'<text x="{x + dx}" y="{y + dy}" text-anchor="middle">{k}</text>'
    )


def _garments(parts: dict[str, dict[str, Any]]) -> str:
    rows = []
    for category in ("upper", "lower", "full"):
        kinds = {split: Counter(_kinds(data, category)) for split, data in parts.items()}
        rows.append((f"**{category}**", *(f"**{kind.total()}**" for kind in kinds.values())))
        named = sorted({kind for counts in kinds.values() for kind in counts if kind}, key=lambda k: -kinds["train"][k])
        rows += [(f"{kind}", *(str(counts[kind] or "-") for counts in kinds.values())) for kind in named]
        if any(counts[""] for counts in kinds.values()):
            rows.append(("type not noted", *(str(counts[""] or "-") for counts in kinds.values())))
    return _table(("garments", *parts), rows)


def _kinds(data: dict[str, Any], category: str) -> list[str]:
    names = {entry["id"]: entry["name"] for entry in data["categories"]}
    return [
        (record.get("garment_type") or "").replace("_", " ")
        for record in data["annotations"]
        if names[record["category_id"]] == category
    ]


def _landmarks(parts: dict[str, dict[str, Any]]) -> str:
    """Flags of each landmark, of the garments that can have it, over the parts that were labelled by hand."""
    spec = garment_spec()
    counts: dict[str, Counter[int]] = {}
    for data in (data for split, data in parts.items() if split != "pseudo"):
        names = {entry["id"]: entry["name"] for entry in data["categories"]}
        for record in data["annotations"]:
            for k, flag in enumerate(record["keypoints"][2::3]):
                if k not in ABSENT.get(names[record["category_id"]], ()):
                    of = counts.setdefault(spec.keypoint_names[k], Counter())
                    of[flag] += 1
                    of[3] += k in record.get("ambiguous_keypoints", ())
    rows = []
    for name in spec.keypoint_names:
        of = counts[name]
        labelled = of[1] + of[2]
        rows.append((name, str(of[2]), str(of[1]), str(of[0]), f"{of[3]} ({of[3] / labelled:.1%})"))
    whole = sum(counts.values(), Counter[int]())
    share = whole[3] / (whole[1] + whole[2])
    rows.append(("**all**", *(f"**{whole[flag]}**" for flag in (2, 1, 0)), f"**{whole[3]} ({share:.1%})**"))
    return _table(("landmarks, by hand", "seen", "inferred", "not labelled", "ambiguous, of the labelled"), rows)


def _boxes(parts: dict[str, dict[str, Any]]) -> str:
    """5 %, 50 % and 95 % quantiles."""
    rows = []
    for split, data in parts.items():
        sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
        boxes = np.array([record["bbox"][2:] for record in data["annotations"]], np.float64)
        images = np.array([sizes[record["image_id"]] for record in data["annotations"]], np.float64)
        rows.append(
            (
                split,
                _quantiles(images.min(1), "{:.0f}"),
                _quantiles(images.max(1), "{:.0f}"),
                _quantiles(boxes.max(1), "{:.0f}"),
                _quantiles(boxes[:, 0] / boxes[:, 1], "{:.2f}"),
                _quantiles(boxes.prod(1) / images.prod(1), "{:.0%}"),
            )
        )
    header = (
        "5 … 50 … 95 %",
        "photo, shorter side, px",
        "longer side, px",
        "box, longer side, px",
        "box, width / height",
    )
    return _table((*header, "box, part of the photo"), rows)


def _quantiles(values: npt.NDArray[np.float64], form: str) -> str:
    return " … ".join(form.format(value) for value in np.quantile(values, (0.05, 0.5, 0.95)))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Write tables and drawings anew."""
    for name in LABEL_SETS:
        card = FOLDER / name / "README.md"
        text = with_statistics(card.read_text(encoding="utf-8"), name)
        files: dict[Path, bytes] = {card: text.encode(), card.with_name("landmarks.svg"): diagram().encode()}
        write_all_atomically(files)


if __name__ == "__main__":
    main()
