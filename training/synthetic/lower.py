"""Trousers, shorts and skirts."""

from __future__ import annotations

import numpy as np

from .details import waist_details
from .shapes import Item, Line, Part, Template, arc, at, between, chance, join, mirror, neckline, points, spline


def legs(rng: np.random.Generator, garment_type: str) -> Template:
    u = rng.uniform
    if garment_type == "trousers":
        waist = float(np.clip(rng.normal(0.21, 0.045), 0.12, 0.34))
        hip, crotch, foot_w = waist * u(1.08, 1.45), u(0.26, 0.42), waist * u(0.35, 1.15)
        foot_x = float(np.clip(rng.normal(0.225, 0.085), 0.06, 0.5))
    else:
        waist = float(np.clip(rng.normal(0.45, 0.1), 0.24, 0.72))
        hip, crotch, foot_w = waist * u(1.12, 1.7), u(0.5, 0.92), waist * u(0.7, 1.25)
        foot_x = waist * u(0.75, 1.15)
    hip_y, back = crotch * u(0.45, 0.8), u(-0.02, 0.05) * waist / 0.3
    front_dip = back + abs(rng.normal(0.0, 0.03))
    left, right = at(-waist, 0), at(waist, 0)
    rear, edge = neckline(left, right, back, 2.2), neckline(left, right, front_dip, 2.0)
    items: list[Item] = [Part(join(rear, edge[::-1]), "inner", shade=u(0.5, 0.85))]
    landmarks, visible = np.zeros((8, 2)), np.array([0, 0, 0, 0, 1, 1, 1, 1], float)
    landmarks[4:6] = left, right
    order = (1, -1) if rng.random() < 0.5 else (-1, 1)
    halves: list[Item] = []
    cuff_h = u(0.02, 0.09) if chance(rng, 0.35) else 0.0
    lap, tilt = 0.0, rng.normal(0.1 if garment_type == "shorts" else 0.0, 0.13)
    knee = rng.normal(0, 0.02) if garment_type == "trousers" else 0.0
    for s in order:
        x, w = foot_x * rng.normal(1, 0.07), foot_w * rng.normal(1, 0.03)
        foot = at(x, 1.0 + rng.normal(0, 0.012))
        lean = np.arctan2(x - hip * 0.5, 1.0 - hip_y) * 0.8 + tilt + rng.normal(0, 0.04)
        across = at(np.cos(lean), -np.sin(lean))
        outer, inner = foot + across * w / 2, foot - across * w / 2
        hips = at(hip * rng.normal(1, 0.02), hip_y)
        crotch_at = at(lap, crotch)
        outer_edge = spline(
            points([waist, 0], hips, between(hips, outer, 0.55) + at(knee + rng.normal(0, 0.008), 0), outer)
        )
        inner_edge = spline(
            points(inner, between(inner, crotch_at, 0.5) + at(knee, 0), between(inner, crotch_at, 0.93), crotch_at)
        )
        end = arc(outer, inner, u(-0.03, 0.05), 7)
        centre = points([-0.01, crotch * 0.5], [-0.01, front_dip])
        top = edge[9:] if s == 1 else mirror(edge[:10][::-1], -1)
        shape = join(top, outer_edge[1:], end[1:-1], inner_edge, centre)
        halves.append(Part(mirror(shape, s), angle=-s * lean * 0.3, shadow=0.15))
        if cuff_h:
            along = at(np.sin(lean), np.cos(lean)) * cuff_h
            halves.append(
                Part(
                    mirror(
                        join(points(outer - along + across * 0.005), end, points(inner - along - across * 0.005)), s
                    ),
                    "trim" if chance(rng, 0.5) else "cloth",
                    angle=s * lean,
                    shadow=0.2,
                )
            )
        else:
            halves.append(Line(mirror(end[::-1] - at(np.sin(lean), np.cos(lean)) * 0.02, s), 0.003, 0.75))
        if chance(rng, 0.3):
            halves.append(
                Line(mirror(outer_edge[4:] * (0.93, 1), s), waist * u(0.01, 0.08), float(rng.choice([0.6, 1.3, 1.7])))
            )
        landmarks[7 if s == 1 else 6] = end[3] * (s, 1)
    items += halves
    items += waist_details(rng, edge, waist, crotch, garment_type)
    return Template(
        garment_type, tuple(items), landmarks, visible, (waist * 0.5, crotch * 0.9, waist * 0.25), points(left, right)
    )


def skirt(rng: np.random.Generator) -> Template:
    u = rng.uniform
    waist = float(np.clip(rng.normal(0.33, 0.09), 0.16, 0.62))
    hem = waist * (u(1.0, 1.6) if chance(rng, 0.4) else u(1.4, 2.8))
    tail, bell = u(-0.01, 0.12), u(0.25, 1.0) if chance(rng, 0.65) else u(0.9, 1.5)
    sides = []
    for _ in range(2):
        foot = at(hem * rng.normal(1, 0.03), 1.0 + rng.normal(0, 0.012))
        hip = points([waist + (foot[0] - waist) * bell * 0.7, 0.4])[0]
        sides.append((foot, spline(points([waist, 0], hip, foot))))
    (right_foot, right_flank), (left_foot, left_flank) = sides[0], tuple(mirror(v, -1) for v in sides[1])
    left, right = at(-waist, 0), at(waist, 0)
    back = u(-0.05, 0.12) * waist
    rear, edge = neckline(left, right, back, 2.2), neckline(left, right, back + abs(rng.normal(0, 0.05)), 2.0)
    shape = join(edge, right_flank[1:], arc(right_foot, left_foot, tail, 16), left_flank[::-1])
    items: list[Item] = [Part(join(rear, edge[::-1]), "inner", shade=u(0.5, 0.85)), Part(shape, shadow=0.5)]
    if chance(rng, 0.45):  # pleats or gathers run from the waist to the hem
        for t in np.linspace(0.03, 0.97, int(u(6, 24))):
            top, foot = between(left, right, t), between(left_foot, right_foot, t + rng.normal(0, 0.01))
            reach = 0.97 if chance(rng, 0.6) else u(0.2, 0.9)
            items.append(
                Line(
                    arc(top + at(0, back), between(top, foot, reach) + at(0, hem * 2 * tail * 0.7), u(-0.02, 0.02)),
                    0.004,
                    u(0.75, 0.95),
                )
            )
    items += waist_details(rng, edge, waist, 0.5, "skirt")
    items.append(Line(arc(left_foot, right_foot, -tail, 16) * (0.985, 1) - at(0, 0.018), 0.003, 0.75))
    landmarks = np.zeros((8, 2))
    landmarks[4:] = left, right, left_foot, right_foot
    visible = np.array([0, 0, 0, 0, 1, 1, 1, 1], float)
    return Template("skirt", tuple(items), landmarks, visible, (0.0, 0.6, waist * 0.4), points(left, right))
