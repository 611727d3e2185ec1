"""Shirts, outwear, vests, slings and dresses."""

from __future__ import annotations

import numpy as np

from .collars import collar
from .details import dress_details, front_details
from .shapes import (
    Array,
    Item,
    Line,
    Part,
    Side,
    Template,
    arc,
    at,
    between,
    chance,
    join,
    mirror,
    mirrored,
    neckline,
    points,
    ribbon,
    spline,
)


def _upper_side(rng: np.random.Generator, garment_type: str, base: dict[str, float]) -> Side:
    j = {k: v * rng.normal(1, 0.025) for k, v in base.items()}  # the two halves are never the same
    neck, shoulder = points([base["neck"], 0])[0], points([j["shoulder"], j["slope"]])[0]
    armpit, waist, hem = (points([j[f"{n}_x"], j[f"{n}_y"]])[0] for n in ("armpit", "waist", "hem"))
    if "dress" in garment_type:
        hip = points([waist[0] + (hem[0] - waist[0]) * base["bell"], waist[1] + (hem[1] - waist[1]) * 0.35])[0]
        flank = spline(points(armpit, waist, hip, hem))
    else:
        flank = spline(points(armpit, waist, hem))
    return Side(neck, shoulder, armpit, waist, hem, flank)


def _upper_measures(rng: np.random.Generator, garment_type: str) -> dict[str, float]:
    u = rng.uniform
    dress, vest, outwear = "dress" in garment_type, "vest" in garment_type, "outwear" in garment_type
    if dress:
        chest, neck = u(0.155, 0.29), u(0.075, 0.18)
        m = {"armpit_y": u(0.17, 0.28), "waist_y": u(0.3, 0.53), "waist_x": chest * u(0.72, 1.02)}
        if chance(rng, 0.3):  # no waist: hand labels then sit about two fifths down
            m |= {"waist_y": u(0.38, 0.44), "waist_x": chest * u(0.97, 1.05), "hem_x": chest * u(0.95, 1.4)}
        else:
            m["hem_x"] = max(chest * u(0.9, 1.3), u(0.17, 0.42) if chance(rng, 0.75) else u(0.35, 0.6))
        bell = u(0.3, 0.95) if chance(rng, 0.75) else u(0.9, 1.2)
        m["bell"] = min(bell, 0.75) if m["hem_x"] > m["waist_x"] + 0.18 else bell  # a wide skirt is no hoop
    else:
        chest = float(np.clip(rng.normal(0.43 if "short" in garment_type else 0.39, 0.08), 0.24, 0.68))
        neck = u(0.1, 0.2) * (chest / 0.42) ** 0.5
        m = {"armpit_y": u(0.24, 0.4) + 0.1 * (chest - 0.4) + 0.1 * vest, "waist_y": u(0.55, 0.72)}
        m |= {"waist_x": chest * u(0.86, 1.03), "hem_x": chest * u(0.88, 1.12), "bell": 1.0}
    neck *= 1.15 if outwear else 1.0
    m |= {
        "neck": min(neck, chest * 0.75),
        "armpit_x": chest,
        "hem_y": 1.0,
        "slope": u(0.025, 0.1) * (0.6 if dress else 1),
    }
    m["shoulder"] = chest * (u(0.72, 0.95) if vest else u(0.84, 1.04))
    m["neck"] = min(m["neck"], m["shoulder"] * (0.85 if vest else 0.72))
    return m


def _sleeve(rng: np.random.Generator, side: Side, pose: dict[str, float]) -> tuple[list[Item], Array]:
    """The right sleeve and its landmark, the middle of the cuff's edge."""
    theta, length, cuff = pose["angle"] + rng.normal(0, 0.06), pose["length"] * rng.normal(1, 0.03), pose["cuff"]
    start, armpit = side.shoulder, side.armpit
    along = at(np.sin(theta), np.cos(theta))
    across = at(np.cos(theta), -np.sin(theta))
    # The sleeve's axis leaves from inside the shoulder by half a sleeve, so that its outer edge meets the shoulder.
    opening = float(np.linalg.norm(start - armpit))
    axis = start - across * cuff * 0.42 * max(0.0, float(np.cos(theta)))
    items: list[Item] = []
    folded = pose["fold"] != 0
    reach = length * (0.55 if folded else 1.0)
    end = axis + along * reach
    width = max(cuff, opening * 0.62) if folded else cuff
    skew = along * rng.normal(0, 0.06) * width
    outer, inner = end + across * width / 2 + skew, end - across * width / 2 - skew
    bend = pose["bend"] * reach * 0.12
    outer_edge = spline(
        points(start, between(start, outer, 0.5) + across * (pose["puff"] * length * 0.12 + bend), outer)
    )
    inner_edge = spline(
        points(inner, between(inner, armpit, 0.5) + across * (bend - pose["puff"] * length * 0.05), armpit)
    )
    round_end = arc(outer, inner, 0.5 if folded else float(rng.uniform(-0.02, 0.06)), 7)
    body = points(side.shoulder * 0.94 + at(0, 0.03), side.armpit * 0.94 - at(0, 0.02))
    sleeve = join(outer_edge, round_end[1:-1], inner_edge, body[::-1])
    items.append(Part(sleeve, angle=-theta * 0.8, shadow=pose["shadow"], shade=float(rng.uniform(0.94, 1.04))))
    items.append(Line(arc(side.shoulder, side.armpit, -0.08), 0.005, 0.78))
    if folded:
        phi = theta - pose["fold"]
        along = at(np.sin(phi), np.cos(phi))
        across = at(np.cos(phi), -np.sin(phi))
        root, end = end - along * width * 0.2, end + along * length * 0.45
        outer, inner = end + across * cuff / 2, end - across * cuff / 2
        fore = join(
            points(root + across * width / 2),
            arc(outer, inner, 0.02, 6),
            arc(root - across * width / 2, root + across * width / 2, 0.3, 6),
        )
        items.append(Part(fore, angle=-phi, shadow=0.6))
    tip = between(outer, inner, 0.5)
    tip = round_end[3] if not folded else arc(outer, inner, 0.02, 5)[2]
    if pose["band"] > 0:
        back = along * pose["band"]
        wide = across * 0.03 * cuff
        items.append(
            Part(
                join(points(outer - back + wide), arc(outer, inner, 0.02, 6), points(inner - back - wide)),
                "trim",
                -theta,
            )
        )
    else:
        back = along * 0.02
        items.append(Line(points(outer - back, inner - back), 0.003, 0.75))
    return items, tip


def _sleeve_pose(rng: np.random.Generator, garment_type: str, m: dict[str, float]) -> dict[str, float]:
    u, dress = rng.uniform, "dress" in garment_type
    opening = m["armpit_y"] - m["slope"]
    chest = m["armpit_x"]
    spread = rng.random()
    if "long" in garment_type:
        length = chest * u(2.0, 2.75) if not (dress and chance(rng, 0.4)) else chest * u(1.1, 2.1)
        angle = u(-0.03, 0.45) if spread < (0.85 if "outwear" in garment_type else 0.7) else u(0.4, 1.25)
        cuff = opening * u(0.38, 0.75)
    else:
        length = chest * (u(0.4, 1.1) if dress else u(0.28, 0.8))
        angle = u(0.15, 0.8) if spread < 0.7 else u(0.6, 1.35)
        cuff = opening * u(0.62, 0.98)
    fold = 0.0
    if "long" in garment_type and chance(rng, 0.09):
        fold = u(1.2, 2.7) if angle > 0.25 else u(0.4, 1.2)
    band = chest * u(0.06, 0.2) if "long" in garment_type else chest * u(0.02, 0.07)
    return {
        "length": length,
        "angle": angle,
        "cuff": cuff,
        "fold": fold,
        "bend": rng.normal(0, 0.6),
        "puff": abs(rng.normal(0, 0.5)) if not chance(rng, 0.1) else u(0.8, 1.6),
        "band": band if chance(rng, 0.45) else 0.0,
        "shadow": u(0.15, 0.7),
    }


def upper(rng: np.random.Generator, garment_type: str) -> Template:
    m = _upper_measures(rng, garment_type)
    right, other = _upper_side(rng, garment_type, m), _upper_side(rng, garment_type, m)
    behind, front, edge = collar(rng, garment_type, m)
    sleeved = "sleeved" in garment_type
    hollow = -0.06 if sleeved else -float(rng.uniform(0.04, 0.24))
    outline, armholes = [edge], []
    landmarks, visible = np.zeros((8, 2)), np.array([1, 1, 1, 1, 0, 0, 1, 1], float)
    tail = float(rng.uniform(-0.03, 0.1) if rng.random() < 0.8 else rng.uniform(0.07, 0.22))
    for side in (right, other):
        armhole = arc(side.shoulder, side.armpit, hollow, 11)
        armholes.append(armhole)
    outline += [arc(right.neck, right.shoulder, 0.03, 6), armholes[0], right.flank]
    left = Side(
        *(mirror(v, -1) for v in (other.neck, other.shoulder, other.armpit, other.waist, other.hem, other.flank))
    )
    outline += [
        arc(right.hem, left.hem, tail, 14),
        left.flank[::-1],
        mirror(armholes[1][::-1], -1),
        arc(left.shoulder, left.neck, 0.03, 6),
    ]
    items: list[Item] = [*behind, Part(join(*outline), shadow=0.5)]
    if "dress" in garment_type:
        visible[4:6] = 1
        items += dress_details(rng, left, right)
    items += front_details(rng, garment_type, m, float(edge[:, 1].max()))
    if rng.random() < 0.35 and "dress" not in garment_type:
        h = float(rng.uniform(0.03, 0.09))
        low = arc(left.hem - at(0, h), right.hem - at(0, h), -tail, 14)
        items.append(Part(join(low, arc(right.hem, left.hem, tail, 14)), "trim", shade=0.95))
    else:
        items.append(Line(arc(left.hem, right.hem, -tail, 14) * (0.985, 1) - at(0, 0.018), 0.003, 0.75))
    items += front
    landmarks[[0, 1, 4, 5, 6, 7]] = left.neck, right.neck, left.waist, right.waist, left.hem, right.hem
    if sleeved:
        pose = _sleeve_pose(rng, garment_type, m)
        order = (1, -1) if rng.random() < 0.5 else (-1, 1)
        for s in order:
            own = (
                pose
                if rng.random() < 0.8
                else {
                    **pose,
                    **{k: v for k, v in _sleeve_pose(rng, garment_type, m).items() if k in ("angle", "bend", "fold")},
                }
            )
            drawn, tip = _sleeve(rng, right if s == 1 else other, own)
            items += [mirrored(item, s) for item in drawn]
            landmarks[3 if s == 1 else 2] = tip * (s, 1)
    else:
        landmarks[3], landmarks[2] = armholes[0][5], armholes[1][5] * (-1, 1)
        items += [Line(mirror(a, s) - at(s * 0.008, 0), 0.004, 0.75) for a, s in zip(armholes, (1, -1), strict=True)]
    landmarks[4:6] *= visible[4:6, None]
    chest = (0.0, m["armpit_y"] * 1.25, m["armpit_x"] * 0.55)
    return Template(
        garment_type, tuple(items), landmarks, visible, chest, points(left.shoulder * 0.85, right.shoulder * 0.85)
    )


def sling(rng: np.random.Generator, garment_type: str) -> Template:
    """Tops and dresses on thin straps."""
    u, dress = rng.uniform, garment_type == "sling_dress"
    chest = u(0.14, 0.27) if dress else u(0.28, 0.5)
    corner_y = u(0.06, 0.17) if dress else u(0.12, 0.3)
    corner_x, neck = chest * u(0.62, 0.98), 0.0
    neck = corner_x * u(0.5, 1.08)
    waist_y, waist_x = (u(0.3, 0.5), chest * u(0.75, 1.05)) if dress else (u(0.55, 0.7), chest * u(0.9, 1.05))
    hem_x = chest * (u(1.1, 2.6) if dress else u(0.9, 1.3))
    strap, dip, power = chest * u(0.03, 0.2), corner_y * rng.normal(0, 0.35), float(rng.choice([1.0, 2.0, 4.0]))
    tail = u(-0.03, 0.1)
    sides = []
    for _ in range(2):
        j = rng.normal(1, 0.025, 6)
        corner, armpit = (
            points([corner_x * j[0], corner_y * j[1]])[0],
            points([chest * j[2], corner_y + chest * 0.25])[0],
        )
        waist, hem = points([waist_x * j[3], waist_y * j[4]])[0], points([hem_x * j[5], 1.0])[0]
        sides.append((at(neck, 0), corner, armpit, waist, hem, spline(points(corner, armpit, waist, hem))))
    right, left = sides[0], tuple(mirror(v, -1) for v in sides[1])
    edge = neckline(left[1], right[1], dip, power)
    back = neckline(left[1], right[1], max(dip, 0) * 0.3 + u(0, 0.03), 2.5)
    items: list[Item] = []
    for side, s in ((right, 1), (left, -1)):  # the strap's rear half goes behind the bodice
        foot = at(s * corner_x * u(0.3, 0.8), corner_y + 0.03)
        items.append(Part(ribbon(side[0], foot, strap), "trim", shade=0.8))
    items.append(Part(join(back, edge[::-1]), "inner", shade=u(0.55, 0.85)))
    items.append(Part(join(edge, right[5][1:], arc(right[4], left[4], tail, 14), left[5][::-1]), shadow=0.5))
    for side, s in ((right, 1), (left, -1)):
        items.append(Part(ribbon(side[0], side[1] - at(s * strap * 0.5, -0.01), strap), "trim", shadow=0.3))
    half_left = Side(left[0], left[1], left[2], left[3], left[4], left[5])
    half_right = Side(right[0], right[1], right[2], right[3], right[4], right[5])
    if dress:
        items += dress_details(rng, half_left, half_right)
    items.append(Line(edge + at(0, 0.012), 0.003, 0.75))
    items.append(Line(arc(left[4], right[4], -tail, 14) * (0.985, 1) - at(0, 0.015), 0.003, 0.75))
    landmarks = np.array([left[0], right[0], left[1], right[1], left[3], right[3], left[4], right[4]])
    visible = np.array([1, 1, 1, 1, dress, dress, 1, 1], float)
    landmarks *= visible[:, None]
    m = (0.0, corner_y + chest * 0.8, chest * 0.55)
    return Template(garment_type, tuple(items), landmarks, visible, m, points(left[0], right[0]))
