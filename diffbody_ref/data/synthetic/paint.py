"""Colours of a person's surface at template positions: skin and face, cloth, shoes, hair. Linear RGB."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic import clothing as c
from diffbody_ref.data.synthetic.body import ARMS, HEAD
from diffbody_ref.data.synthetic.textures import albedo, noise
from diffbody_ref.data.synthetic.wardrobe import Garment, Hair, Identity

EYE = np.array([0.031, -0.1245, 0.7285])  # centre of the left eyeball, radius 14 mm


def chart(p: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cloth coordinates in metres at template positions (M, 3): around and along the trunk, an arm or a leg."""
    arm, leg = parts[:, ARMS] > 0.5, p[:, 2] < 0.02
    side = np.sign(p[:, 0])
    axis = (c.WRIST - c.SHOULDER) / np.linalg.norm(c.WRIST - c.SHOULDER)
    q = np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], 1) - c.SHOULDER
    along = q @ axis
    across = q - along[:, None] * axis
    up = np.array([axis[2], 0.0, -axis[0]])
    u_arm = 0.045 * np.arctan2(across[:, 1], across @ up)
    centre_x = side * np.interp(-p[:, 2], [0.0, 0.37, 0.73], [0.10, 0.16, 0.215])
    u_leg = 0.075 * np.arctan2(p[:, 0] - centre_x, -(p[:, 1] + 0.015))
    u_trunk = 0.14 * np.arctan2(p[:, 0], -(p[:, 1] + 0.02))
    u = np.where(arm, u_arm + side, np.where(leg, u_leg + 2 * side, u_trunk))
    return u.astype(np.float32), np.where(arm, -along, p[:, 2]).astype(np.float32)


def _cloth(g: Garment, fields: np.ndarray, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    u, v = chart(p, parts)
    colour = albedo(g.cloth, u, v)
    edge = fields.min(1)
    colour = colour * np.where((edge < 0.013) & (edge > 0.009), 0.6, np.where(edge < 0.009, 0.85, 1.0))[:, None]
    creases = noise(1, u * 0.9 + g.cloth.offset[0], v * 0.55) + 0.8 * noise(2, u * 1.3, v * 1.1 + g.cloth.offset[1])
    return colour * np.exp(0.05 * creases)[:, None]


def _upper(g: Garment, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    colour = _cloth(g, c.upper_fields(g, p, parts), p, parts)
    if g.front is None:
        return colour
    facing = (p[:, 1] < -0.045) & (parts[:, ARMS] < 0.5)
    if g.front_width > 0:
        ragged = g.front_width * (1 + 0.6 * (p[:, 2] - 0.25)) if g.front_width > 0.01 else g.front_width
        inside = facing & (np.abs(p[:, 0]) < ragged)
    else:
        inside = facing & (np.abs(p[:, 0]) < -g.front_width) & (np.abs(p[:, 2] - 0.36) < -0.9 * g.front_width)
    colour[inside] = albedo(g.front, p[inside, 0], p[inside, 2])
    return colour


def _lower(g: Garment, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    colour = _cloth(g, c.lower_fields(g, p, parts * (g.cut != "skirt")), p, parts)
    if g.cut in ("jeans", "trousers", "shorts"):
        x = np.abs(p[:, 0])
        fly = (x < 0.004) & (p[:, 1] < -0.04) & (p[:, 2] > -0.02)
        pocket = (
            (np.abs(x - 0.085 - 0.8 * (0.09 - p[:, 2])) < 0.003) & (p[:, 2] > 0.0) & (p[:, 2] < 0.09) & (p[:, 1] < 0)
        )
        back = (np.abs(np.maximum(np.abs(x - 0.075) - 0.036, np.abs(p[:, 2] - 0.03) - 0.04)) < 0.003) & (p[:, 1] > 0.03)
        colour[fly | pocket | back] *= 0.5
    return colour


def _shoes(g: Garment, p: np.ndarray) -> np.ndarray:
    colour = albedo(g.cloth, p[:, 0], p[:, 1])
    assert g.front is not None
    sole = p[:, 2] < -0.802
    laces = (np.abs(np.abs(p[:, 0]) - 0.205) < 0.022) & (p[:, 1] < -0.05) & (p[:, 1] > -0.12) & (p[:, 2] > -0.79)
    rows = laces & (np.mod(p[:, 1], 0.016) < 0.006)
    colour[rows] = 0.6 * colour[rows] + 0.3
    colour[sole] = albedo(g.front, p[sole, 0], p[sole, 1])
    return colour


def _hair(hair: Hair, p: np.ndarray) -> np.ndarray:
    if hair.style == "curly":
        strand = noise(1, p[:, 0] * 2.1 + p[:, 1], p[:, 2] * 2.1 - p[:, 1]) + 0.5 * noise(
            0, p[:, 0] * 3, p[:, 2] * 3 + p[:, 1]
        )
    else:
        around = np.arctan2(p[:, 0], -(p[:, 1] + 0.03)) + 0.15 * noise(2, p[:, 2], p[:, 0])
        strand = noise(1, around * 0.22 + 0.01 * hair.seed, p[:, 2] * 0.35) + 0.6 * noise(
            0, around * 0.1, p[:, 2] * 0.15
        )
    return (hair.colour * np.exp(0.34 * strand)[:, None]).astype(np.float32)


def _gauss(p: np.ndarray, centre: tuple[float, float, float], width: float) -> np.ndarray:
    q = np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], 1) - np.array(centre)
    return np.exp(-0.5 * (q * q).sum(1) / width**2)


def _mix(colour: np.ndarray, other: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return colour + (other - colour) * np.clip(weight, 0, 1)[:, None]


def _face(who: Identity, colour: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Brows, lids, lips, beard and glasses over the skin (M, 3) of the head's front."""
    x, z = np.abs(p[:, 0]), p[:, 2]
    brow_colour = np.minimum(who.hair.colour * 0.7, who.skin * 0.6)
    colour = _mix(
        colour,
        who.skin * np.array([1.05, 0.72, 0.68]),
        0.5 * _gauss(p, (0.045, -0.12, 0.69), 0.018) + 0.35 * _gauss(p, (0, -0.166, 0.692), 0.012),
    )
    t = (x - 0.013) / 0.040
    arc = 0.7475 + 0.0085 * np.sin(2.2 * np.clip(t, 0, 1))
    brow = (t > 0) & (t < 1) & (np.abs(z - arc) < 0.0036 - 0.0018 * t)
    colour = _mix(colour, brow_colour, brow * (0.75 + 0.2 * noise(0, p[:, 0] * 6, z * 2)))
    q = np.stack([x, p[:, 1], z], 1) - EYE
    reach = np.linalg.norm(q, axis=1)
    lid = np.clip((0.0195 - reach) / 0.004, 0, 1)
    colour = _mix(colour, who.skin * 0.45, 0.55 * lid)
    colour = _mix(colour, np.full(3, 0.012), (reach < 0.0156) & (q[:, 2] > -0.003))
    bow = np.sqrt(np.clip(1 - (x / 0.026) ** 2, 0, 1))
    lip = (z < 0.6607 + 0.0092 * bow) & (z > 0.6607 - 0.0118 * bow)
    crack = np.abs(z - 0.6607) < 0.0011 * (x < 0.025)
    if who.hair.beard:
        jaw = np.clip((0.655 - z + 0.25 * np.clip(x - 0.04, 0, 1)) / 0.01, 0, 1) + (np.abs(z - 0.676) < 0.0055) * (
            x < 0.03
        )
        jaw = np.clip(jaw, 0, 1) * (z > 0.600) * (p[:, 1] < -0.05)
        colour = _mix(
            colour, who.hair.colour, jaw * (who.hair.beard - 0.2) * (0.9 + 0.35 * noise(0, p[:, 0] * 5, z * 3))
        )
    colour = _mix(colour, who.lips, 0.75 * lip)
    colour = _mix(colour, who.lips * 0.25, crack)
    if who.glasses:
        lens = ((x - 0.0325) / 0.0235) ** 4 + ((z - 0.7265) / 0.0175) ** 4
        rim = ((lens > 0.62) & (lens < 1.25)) | ((x < 0.012) & (np.abs(z - 0.733) < 0.0016))
        rim |= (p[:, 1] > -0.118) & (np.abs(z - 0.7335) < 0.0022) & (p[:, 1] < -0.06)
        colour = _mix(colour, np.full(3, 0.015), rim | ((lens < 1) & (who.glasses == "sunglasses")))
    return colour


def _skin(who: Identity, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    tone = 0.05 * noise(2, p[:, 0] + p[:, 1], p[:, 2] + 0.5 * p[:, 1]) + 0.03 * noise(
        0, p[:, 0] * 2.3 + p[:, 1], p[:, 2] * 2.3
    )
    colour = (who.skin * np.exp(tone)[:, None]).astype(np.float32)
    front = (p[:, 2] > 0.595) & (p[:, 1] < -0.045)
    colour[front] = _face(who, colour[front], p[front])
    if who.hair.style != "bald":
        scalp = p[:, 2] > 0.64
        q = p[scalp]
        weight = np.clip(c.scalp_field(who.hair, q) / 0.01, 0, 1) * (0.75 + 0.15 * noise(0, q[:, 0] * 4, q[:, 2] * 4))
        colour[scalp] = _mix(colour[scalp], who.hair.colour, weight)
    return colour


def _eyes(who: Identity, p: np.ndarray) -> np.ndarray:
    q = np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], 1) - EYE
    angle = np.hypot(q[:, 0], q[:, 2]) / np.maximum(-q[:, 1], 1e-4)
    colour = np.where((angle < 0.55)[:, None], who.iris, np.array([0.62, 0.60, 0.58]))
    colour = np.where((angle < 0.22)[:, None], 0.004, colour)
    if who.glasses == "sunglasses":
        colour = colour * 0.02
    return colour.astype(np.float32)


def _layer_colour(who: Identity, kind: int, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    if kind == c.BODY:
        return _skin(who, p, parts)
    if kind == c.EYES:
        return _eyes(who, p)
    if kind == c.UPPER:
        return _upper(who.upper, p, parts)
    if kind == c.LOWER:
        return _lower(who.lower, p, parts)
    if kind == c.SHOES:
        return _shoes(who.shoes, p)
    if kind == c.HAIR or who.hat is None:
        return _hair(who.hair, p)
    return albedo(who.hat.cloth, 0.09 * np.arctan2(p[:, 0], -p[:, 1] - 0.03), p[:, 2])


def person_albedo(who: Identity, kind: np.ndarray, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Linear RGB (M, 3) of surface points.

    Args:
        kind: int (M,), `clothing.BODY` and so on.
        p: float32 (M, 3) template positions.
        parts: float32 (M, 5).
    """
    kind = kind.copy()
    body = np.flatnonzero(kind == c.BODY)
    # Where a pose pushes the skin through the cloth, it is painted as the cloth.
    q, hung = p[body], parts[body]
    margin = 0.02 if who.lower.cut == "skirt" else 0.006
    kind[body[c.lower_fields(who.lower, q, hung).min(-1) > margin]] = c.LOWER
    kind[body[(c.upper_fields(who.upper, q, hung).min(-1) > 0.006) & (hung[:, HEAD] < 0.4)]] = c.UPPER
    kind[body[c.shoe_fields(who.shoes, q).min(1) > 0.003]] = c.SHOES
    out = np.zeros((len(p), 3), np.float32)
    for number in np.unique(kind):
        chosen = np.flatnonzero(kind == number)
        out[chosen] = _layer_colour(who, int(number), p[chosen], parts[chosen])
    return out
