"""Necklines, shirt collars, stand-up collars and hoods."""

from __future__ import annotations

import numpy as np

from .shapes import Array, Item, Line, Part, arc, at, chance, join, mirror, neckline, points, spline


def collar(rng: np.random.Generator, garment_type: str, m: dict[str, float]) -> tuple[list[Item], list[Item], Array]:
    """What lies behind the body, what lies on it, and the front neckline from left to right."""
    u, n = rng.uniform, m["neck"]
    left, right = at(-n, 0), at(n, 0)
    outwear, shirt = "outwear" in garment_type, "shirt" in garment_type
    luck = rng.random()
    style = "plain"
    if outwear:
        style = "hood" if luck < 0.35 else "stand" if luck < 0.65 else "flaps" if luck < 0.92 else "plain"
    elif garment_type == "vest":
        style = "stand" if luck < 0.3 else "flaps" if luck < 0.36 else "plain"
    elif shirt or "short_sleeved_dress" in garment_type or "long_sleeved_dress" in garment_type:
        limit = 0.3 if "long" in garment_type and shirt else 0.22
        style = "flaps" if luck < limit else "stand" if luck < limit + 0.07 else "plain"
        style = "hood" if shirt and "long" in garment_type and luck > 0.9 else style
    power = float(rng.choice([1.0, 1.3, 2.0, 2.2, 3.0, 4.5], p=[0.14, 0.08, 0.42, 0.2, 0.1, 0.06]))
    dip = n * (u(0.25, 1.0) if power > 1.5 else u(0.6, 1.9))
    behind: list[Item] = []
    front: list[Item] = []
    if style == "plain":
        dip = min(dip, m["armpit_y"] * 0.95)
        edge = neckline(left, right, dip, power)
        back = neckline(left, right, n * u(-0.05, 0.22), 2.2)
        behind.append(Part(join(back, edge[::-1]), "inner", shade=u(0.55, 0.9)))
        behind.append(Line(back + at(0, 0.01), 0.012 * n / 0.13, u(0.7, 1.1)))
        if chance(rng, 0.6):  # a rib along the neckline
            width = n * u(0.06, 0.22)
            outside = neckline(
                left - at(width * 0.7, -width * 0.1), right + at(width * 0.7, width * 0.1), dip + width, power
            )
            front.append(Part(join(edge, outside[::-1]), "trim", shade=u(0.88, 1.06)))
        else:
            front.append(Line(edge + at(0, 0.012), 0.003, 0.75))
        return behind, front, edge
    height = n * (u(0.2, 0.75) if style != "stand" else u(0.3, 1.0))
    dip = n * (u(0.5, 1.3) if style == "flaps" else u(0.25, 0.9))
    edge = neckline(left, right, dip, 1.2 if style == "flaps" else 1.7)
    inset = u(0.62, 0.95)
    top_left, top_right = at(-n * inset, -height), at(n * inset, -height)
    top = arc(top_left, top_right, u(-0.06, 0.16))
    if style == "hood":
        behind, front = _hood(rng, n, dip)
    else:
        behind.append(Part(join(points(left), top, points(right), edge[::-1]), "inner", shade=u(0.5, 0.9)))
    if style == "stand":
        closed = chance(rng, 0.55)
        rim = top if closed else join(top[:1], arc(top_left, top_right, -u(0.3, 0.7))[1:-1], top[-1:])
        if closed:
            rim = arc(top_left, top_right, u(-0.12, 0.02))
        front.append(Part(join(points(left), rim, points(right), edge[::-1]), "trim", shade=u(0.85, 1.05), shadow=0.3))
        if chance(rng, 0.07):  # a long polo neck
            up = n * u(1.0, 2.2)
            front.append(Part(points(left, [-n * 0.9, -up], [n * 0.9, -up], right), "trim", shadow=0.3))
    if style == "flaps":
        tip, drop = n * u(0.3, 0.95), u(0.25, 1.0) * n
        for s in (-1, 1):
            meet = at(0.0, dip * u(0.75, 0.95))
            outer = at(n * u(0.98, 1.12), n * 0.12)
            shape = join(
                points([n, -0.001], [n * inset, -height]),
                arc([n * inset, -height], meet, u(-0.12, 0.02)),
                points([tip, dip + drop]),
                arc([tip, dip + drop], outer, u(-0.05, 0.1), 5),
            )
            front.append(Part(mirror(shape, s), "trim", angle=s * 0.8, shade=u(0.92, 1.08), shadow=0.5))
    return behind, front, edge


def _hood(rng: np.random.Generator, n: float, dip: float) -> tuple[list[Item], list[Item]]:
    u = rng.uniform
    high, wide, lean = n * u(0.7, 3.0), n * u(1.0, 1.55), n * rng.normal(0, 0.25)
    rim = spline(
        points(
            [-n, 0],
            [-wide, -0.45 * high],
            [-0.55 * wide + lean, -0.93 * high],
            [lean, -high],
            [0.55 * wide + lean, -0.93 * high],
            [wide, -0.45 * high],
            [n, 0],
        )
    )
    base = neckline(at(-n, 0), at(n, 0), dip, 1.5)
    behind: list[Item] = [Part(join(rim, base[::-1]), shade=u(0.85, 1.05), shadow=0.3)]
    mouth = (rim - at(0, -0.2 * high)) * (u(0.4, 0.85), u(0.5, 0.85)) + at(0, 0.03)
    behind.append(Part(join(mouth, base[::-1] * (0.8, 1)), "inner", shade=u(0.45, 0.85)))
    front: list[Item] = []
    if chance(rng, 0.6):  # the hood's two edges crossing below the chin
        for s in (-1, 1):
            flap = points(
                [n, 0],
                [wide * 0.85, -0.4 * high],
                [n * 0.5, -0.2 * high],
                [-n * 0.05, dip * 1.15],
                [n * 0.6, dip * 0.95],
            )
            front.append(Part(mirror(spline(flap, 4), s), shade=u(0.9, 1.05), shadow=0.4))
    if chance(rng, 0.5):
        for s in (-1, 1):
            x = n * u(0.25, 0.5)
            front.append(
                Line(
                    mirror(arc([x, dip], [x * u(0.6, 1.5), dip + n * u(0.5, 2)], u(-0.1, 0.1)), s),
                    0.008,
                    float(rng.choice([0.4, 1.8])),
                )
            )
    return behind, front
