"""What is sewn onto the cloth: zips, buttons, pockets, waist seams, belts and gathers."""

from __future__ import annotations

import numpy as np

from .shapes import Array, Item, Line, Part, Side, arc, at, between, chance, join, mirror, points


def front_details(rng: np.random.Generator, garment_type: str, m: dict[str, float], dip: float) -> list[Item]:
    u, items = rng.uniform, list[Item]()
    chest = m["armpit_x"]
    outwear = "outwear" in garment_type or (garment_type == "vest" and chance(rng, 0.5))
    hem = m["hem_y"] * 1.0
    if outwear and chance(rng, 0.35):  # worn open: the lining shows in a wedge
        top, foot = chest * u(0.02, 0.25), chest * u(0.02, 0.45)
        items.append(
            Part(points([-top, dip * 0.9], [top, dip * 0.9], [foot, hem], [-foot, hem]), "inner", shade=u(0.45, 0.8))
        )
        items += [Line(points([s * top, dip * 0.9], [s * foot, hem]), 0.008, u(0.5, 1.5)) for s in (-1, 1)]
    elif outwear or ("shirt" in garment_type and chance(rng, 0.3)) or chance(rng, 0.12):
        end = hem if outwear or chance(rng, 0.7) else u(0.3, 0.6)
        x = chest * rng.normal(0, 0.03)
        line = arc([x, dip], [x + chest * rng.normal(0, 0.04), end], rng.normal(0, 0.01), 14)
        if chance(rng, 0.5):
            items.append(Line(line, chest * u(0.02, 0.05), float(rng.choice([0.45, 0.6, 1.6]))))  # a zip
        else:
            half = chest * u(0.04, 0.09)
            items += [Line(line + at(half, 0), 0.003, 0.7), Line(line - at(half, 0), 0.003, 0.85)]
            items.append(Line(line[1::2], chest * u(0.03, 0.06), float(rng.choice([0.4, 1.7])), dots=True))
    if chance(rng, 0.7 if outwear else 0.12):
        y, x, size = hem * u(0.6, 0.75), chest * u(0.35, 0.6), chest * u(0.12, 0.28)
        tilt = u(-0.2, 1.2)
        step = at(np.cos(tilt), np.sin(tilt)) * size
        items += [Line(mirror(points([x, y], at(x, y) + step), s), 0.007, 0.6) for s in (-1, 1)]
    if chance(rng, 0.22 if "shirt" in garment_type else 0.06):  # a breast pocket
        x, y, w = chest * u(0.3, 0.45), m["armpit_y"] * u(0.75, 1.1), chest * u(0.14, 0.24)
        box = points([x - w, y], [x + w, y], [x + w, y + 1.9 * w], [x, y + 2.3 * w], [x - w, y + 1.9 * w], [x - w, y])
        items.append(Line(box, 0.004, 0.75))
    if outwear and chance(rng, 0.3):  # quilting
        for y in np.arange(m["armpit_y"] * 0.6, hem * 0.97, u(0.06, 0.13)):
            items.append(Line(arc([-chest * 1.1, y], [chest * 1.1, y], -u(0, 0.03)), 0.008, 0.72))
    return items


def dress_details(rng: np.random.Generator, left: Side, right: Side) -> list[Item]:
    """The waist seam, belt or gathers, and tiers."""
    u, items, kind = rng.uniform, list[Item](), rng.random()
    low, high = left.waist, right.waist
    if kind < 0.3:
        items.append(Line(arc(low, high, u(-0.05, 0.05)), 0.006, 0.65))
    elif kind < 0.55:
        h = u(0.008, 0.03)
        items.append(
            Part(
                join(arc(low - at(0, h), high - at(0, h), -0.03), arc(high + at(0, h), low + at(0, h), 0.03)),
                "trim",
                shade=u(0.7, 1.1),
                shadow=0.25,
            )
        )
    elif kind < 0.8:
        for x in np.linspace(0.04, 0.96, int(u(10, 26))):
            top = between(low, high, x)
            items.append(
                Line(
                    arc(
                        top - at(0, u(0, 0.03)),
                        top + at(rng.normal(0, 0.01) + (x - 0.5) * 0.1, u(0.04, 0.2)),
                        u(-0.05, 0.05),
                        5,
                    ),
                    0.003,
                    u(0.75, 0.93),
                )
            )
    if chance(rng, 0.15):
        for t in np.linspace(0.35, 0.95, int(u(2, 4))):
            items.append(
                Line(
                    arc(
                        mirror(between(low * (-1, 1), left.hem * (-1, 1), t)[None], -1)[0],
                        between(high, right.hem, t),
                        -0.04,
                    ),
                    0.008,
                    0.7,
                )
            )
    return items


def waist_details(rng: np.random.Generator, edge: Array, waist: float, crotch: float, garment_type: str) -> list[Item]:
    u, items = rng.uniform, list[Item]()
    band = waist * u(0.1, 0.3)
    low = edge * (1.0 + band * 0.12, 1) + at(0, band)
    if chance(rng, 0.7):
        items.append(
            Part(
                join(edge, low[::-1]),
                "cloth" if chance(rng, 0.65) else "trim",
                angle=1.57,
                shade=u(0.85, 1.05),
                shadow=0.2,
            )
        )
        if chance(rng, 0.35):  # elastic
            items += [Line(points(edge[i], low[i]), 0.003, u(0.6, 0.85)) for i in range(1, 18)]
        else:
            items += [
                Line(points(edge[i] + at(0, -0.002), low[i] + at(0, 0.004)), waist * 0.045, u(0.7, 1.2))
                for i in (4, 14)
            ]
    if garment_type == "skirt":
        return items
    items.append(Line(points([0, edge[9][1]], [0, crotch]), 0.006, 0.62))
    if chance(rng, 0.6):
        x = waist * u(0.12, 0.2)
        items.append(
            Line(join(points([x, band]), arc([x, crotch * 0.5], [0, crotch * 0.75], 0.15, 6)), 0.003, u(0.6, 1.4))
        )
        items.append(
            Line(
                points([waist * 0.02, edge[9][1] + band * 0.5]), waist * 0.09, float(rng.choice([0.4, 1.6])), dots=True
            )
        )
    if chance(rng, 0.7):
        for s in (-1, 1):
            pocket = arc([waist * u(0.45, 0.7), band], [waist * 1.08, crotch * u(0.35, 0.6)], u(-0.25, 0.02))
            items.append(Line(mirror(pocket, s), 0.005, u(0.6, 0.85)))
    if chance(rng, 0.25):
        for s in (-1, 1):
            items.append(
                Line(
                    mirror(
                        arc([waist * 0.05, band * 0.5], [waist * u(0.1, 0.4), waist * u(0.5, 1.1)], u(-0.2, 0.2)), s
                    ),
                    0.01,
                    float(rng.choice([0.35, 1.9])),
                )
            )
    return items
