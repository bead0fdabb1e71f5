"""Colours of a person's surface at template positions: cloth with seams, shoes, accessories. Colours are linear RGB.

In this module p are template positions (M, 3), parts are part weights (M, 5), and g is a garment.
"""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic import clothing as c
from diffbody_ref.data.synthetic.body import ARMS, HEAD
from diffbody_ref.data.synthetic.garments import Garment
from diffbody_ref.data.synthetic.skin import card_hair, eye_colour, shell_hair, skin_colour
from diffbody_ref.data.synthetic.textures import albedo, cell_random, noise
from diffbody_ref.data.synthetic.wardrobe import Identity


def chart(p: np.ndarray, parts: np.ndarray, skirted: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Cloth coordinates (u, v) in metres at template positions: around and along the trunk, an arm or a leg."""
    arm, leg = parts[:, ARMS] > 0.5, (p[:, 2] < 0.02) & (not skirted)
    side = np.sign(p[:, 0])
    axis = (c.WRIST - c.SHOULDER) / np.linalg.norm(c.WRIST - c.SHOULDER)
    q = np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], 1) - c.SHOULDER
    along = q @ axis
    across = q - along[:, None] * axis
    up = np.array([axis[2], 0.0, -axis[0]])
    u_arm = 0.045 * np.arctan2(across[:, 1], across @ up)
    centre_x = side * np.interp(-p[:, 2], [0.0, 0.37, 0.73], [0.10, 0.16, 0.215])
    u_leg = 0.075 * np.arctan2(p[:, 0] - centre_x, -(p[:, 1] + 0.015))
    u_trunk = (0.2 if skirted else 0.14) * np.arctan2(p[:, 0], -(p[:, 1] + 0.02))
    u = np.where(arm, u_arm + side, np.where(leg, u_leg + 2 * side, u_trunk))
    return u.astype(np.float32), np.where(arm, -along, p[:, 2]).astype(np.float32)


def _bump(value: np.ndarray, middle: float, width: float) -> np.ndarray:
    """A Gaussian of height 1."""
    return np.exp(-0.5 * ((value - middle) / width) ** 2)


def _folds(g: Garment, u: np.ndarray, v: np.ndarray, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The shading of folds in light from above, about 0: sharp at elbows, knees, waist and ankles, else soft."""
    z, arm = p[:, 2], parts[:, ARMS] > 0.5
    along = c.along_arm(p)
    bent = np.where(arm, _bump(along, c.ELBOW, 0.11) + 0.8 * _bump(along, 0.08, 0.09), 0)
    if g.sleeve > 0.8:
        bent = bent + np.where(arm, 0.7 * _bump(along, g.sleeve - 0.1, 0.06), 0)
    if g.kind in ("jeans", "trousers", "sweatpants", "leggings", "shorts"):
        bent = bent + _bump(z, c.KNEE_Z, 0.07) + 0.9 * _bump(z, -0.01, 0.045) + 0.9 * _bump(z, g.hem + 0.05, 0.05)
    elif not g.skirted:
        bent = bent + np.where(arm, 0, 0.9 * _bump(z, max(g.hem + 0.05, 0.13), 0.06))
    shift = g.cloth.offset[0] * 3

    def slope(kind: int, a: float, b: float, step: float) -> np.ndarray:
        ridge = [np.abs(noise(kind, u * a + shift, v * b + 0.2 * u + t) + 0.2) for t in (0.0, step)]
        return np.clip(2.2 * (ridge[1] - ridge[0]), -1.2, 1.2)

    tight = 0.35 + 0.65 * np.clip((g.loose - 0.003) / 0.01, 0, 1)
    sharp = slope(3, 1.6, 4.2, 0.05)
    soft = slope(3, 3.2, 0.7, 0.02) if g.skirted else slope(3, 1.3, 1.5, 0.03)
    wave = 0.0
    if g.skirted and g.pleats:
        fall = np.clip((0.1 - z) / 0.2, 0, 1)
        wave = 0.22 * fall * np.cos(g.pleats * np.arctan2(p[:, 0], -p[:, 1] - 0.02) + 0.8)
    return tight * (0.34 * np.clip(bent, 0, 1.2) * sharp + 0.08 * soft) + wave


def _cloth(g: Garment, fields: np.ndarray, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """A garment's cloth with ribs or seams at its edges (given by its fields), and folds."""
    u, v = chart(p, parts, g.skirted)
    colour = albedo(g.cloth, u, v)
    edge = fields.min(1)
    if g.kind in ("sweater", "turtleneck", "cardigan", "hoodie", "zip hoodie", "sweatpants"):  # ribs
        rib = np.where(np.mod(u, 0.009) < 0.003, 0.72, 0.95)
        colour = colour * np.where((edge > 0) & (edge < 0.045), rib, 1.0)[:, None]
        colour = colour * np.where(np.abs(edge - 0.045) < 0.003, 0.6, 1.0)[:, None]
    else:
        colour = colour * np.where(np.abs(edge - 0.014) < 0.0016, 0.68, np.where(edge < 0.004, 0.8, 1.0))[:, None]
    return colour * np.exp(_folds(g, u, v, p, parts))[:, None]


def _print(g: Garment, colour: np.ndarray, p: np.ndarray, parts: np.ndarray) -> None:
    """Paint a print, logo or lettering on the chest; `colour` is changed in place."""
    assert g.trim is not None
    x, z = p[:, 0], p[:, 2]
    front = (p[:, 1] < -0.045) & (parts[:, ARMS] < 0.5)
    if g.detail == "print":
        corner = np.maximum(np.abs(x) - 0.07, np.abs(z - 0.36) - 0.075)
        inside = front & (corner + 0.004 * noise(1, x * 3, z * 3) < 0)
        colour[inside] = albedo(g.trim, x[inside], z[inside])
    elif g.detail == "logo":
        inside = front & (np.hypot((x - 0.062) / 1.2, z - 0.44) < 0.017)
        colour[inside] = g.trim.colours[0]
    elif g.detail == "lettering":
        rows = np.where(z > 0.375, (z - 0.395) / 0.022, (z - 0.352) / 0.012)
        letter, stroke = x / 0.021, np.floor(x / 0.0042) % 5
        on = cell_random(x / 0.0042, rows * 2.5, g.trim.seed)[:, 0] > 0.42
        width = np.where(z > 0.375, 0.085, 0.055)
        word = cell_random(letter, np.floor(z / 0.043), g.trim.seed + 1)[:, 0] > 0.12
        inside = front & (np.abs(rows) < 1) & on & (stroke < 4) & (np.abs(x) < width) & word
        colour[inside] = g.trim.colours[0]


def _upper(g: Garment, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """An upper or outer garment with its details: plackets, buttons, pockets, tie, cords, zips."""
    colour = _cloth(g, c.upper_fields(g, p, parts), p, parts)
    assert g.trim is not None or g.kind == "dress"
    x, z, trunk = np.abs(p[:, 0]), p[:, 2], parts[:, ARMS] < 0.5
    front = (p[:, 1] < -0.03) & trunk
    if g.detail in ("print", "logo", "lettering"):
        _print(g, colour, p, parts)
    low = 0.36 if g.kind == "polo shirt" else -1.0
    if g.kind in ("shirt", "polo shirt"):
        placket = front & (np.abs(x - 0.012) < 0.0012) & (z > low)
        colour[placket] *= 0.6
        button = np.hypot(x, np.mod(z - 0.02, 0.068) - 0.034) < 0.0048
        colour[front & button & (z > low)] = 0.75 if g.cloth.colours[0].mean() < 0.35 else 0.12
        if g.detail == "pocket":
            box = np.maximum(np.abs(p[:, 0] - 0.072) - 0.036, np.abs(z - 0.415) - 0.042)
            colour[front & (np.abs(box) < 0.0018)] *= 0.6
    if g.detail == "tie" and g.trim is not None:
        half = np.interp(z, [0.1, 0.14, 0.5, 0.515, 0.545], [0.0, 0.03, 0.014, 0.02, 0.024])
        inside = front & (x < half) & (z > 0.1) & (z < 0.55)
        colour[inside] = albedo(g.trim, p[inside, 0], z[inside] + 0.7 * p[inside, 0])
        colour[inside & (np.abs(z - 0.512) < 0.003)] *= 0.5
    if g.kind == "hoodie":
        pouch = np.maximum(x - 0.105 + 0.35 * np.clip(z - 0.09, 0, 1), np.abs(z - 0.11) - 0.07)
        colour[front & (np.abs(pouch) < 0.0022)] *= 0.55
        cord = front & (np.abs(x - 0.028) < 0.0028) & (z > 0.4) & (z < 0.55)
        colour[cord] = 0.7
    if g.gap:
        pocket = front & (np.abs(z - 0.13 - 0.25 * (x - 0.1)) < 0.0035) & (np.abs(x - 0.105) < 0.035)
        colour[pocket] *= 0.5
        edge = np.abs(x - c.opening(g, p) - 0.009) < 0.0022
        if g.kind in ("jacket", "zip hoodie", "denim jacket"):
            colour[front & edge] = 0.35 if g.kind != "denim jacket" else colour[front & edge] * 1.6
        if g.kind in ("blazer", "coat", "cardigan"):
            button = np.hypot(x - c.opening(g, p) - 0.016, np.mod(z, 0.09) - 0.045) < 0.007
            colour[front & button & (z < 0.3) & (p[:, 0] > 0)] = 0.03
    return colour


def _lower(g: Garment, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """A lower garment with its details: fly, pockets, belt, creases, piping."""
    colour = _cloth(g, c.lower_fields(g, p, parts * (not g.skirted)), p, parts)
    x, z = np.abs(p[:, 0]), p[:, 2]
    if g.kind in ("jeans", "trousers", "shorts", "sweatpants"):
        fly = (np.abs(p[:, 0] - 0.01) < 0.0018) & (p[:, 1] < -0.04) & (z > -0.02)
        pocket = (np.abs(x - 0.085 - 0.8 * (0.09 - z)) < 0.0022) & (z > 0.0) & (z < 0.09) & (p[:, 1] < 0)
        back = (np.abs(np.maximum(np.abs(x - 0.075) - 0.036, np.abs(z - 0.03) - 0.04)) < 0.0022) & (p[:, 1] > 0.03)
        band = np.abs(z - 0.087) < 0.0018
        stitch = 1.7 if g.kind == "jeans" and g.cloth.colours[0].mean() < 0.1 else 0.55
        colour[fly | pocket | back | band] *= stitch
        if g.kind in ("jeans", "trousers"):
            belt = (z > 0.092) & (z < 0.112)
            colour[belt] = np.array([0.035, 0.022, 0.015])
            colour[belt & (np.maximum(x - 0.016, np.abs(z - 0.102) - 0.008) < 0) & (p[:, 1] < -0.05)] = 0.45
    if g.kind == "trousers":  # ironed
        crease = np.abs(x - np.interp(-z, [0.0, 0.37, 0.73], [0.10, 0.16, 0.215])) < 0.0025
        colour[crease & (p[:, 1] < -0.02) & (z < -0.05)] *= 1.25
    if g.detail == "piping" and g.trim is not None:
        centre = np.interp(-z, [0.0, 0.37, 0.73], [0.10, 0.16, 0.215])
        stripe = (
            (np.abs(np.mod(p[:, 1] + 0.005, 0.024) - 0.012) < 0.0045) & (np.abs(p[:, 1]) < 0.03) & (x > centre + 0.02)
        )
        colour[stripe & (z < 0.08)] = g.trim.colours[0]
    return colour


def _shoes(g: Garment, p: np.ndarray) -> np.ndarray:
    """Shoes with tongue, laces, stripes and soles."""
    colour = albedo(g.cloth, p[:, 1], p[:, 2])
    assert g.trim is not None
    x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
    middle = 0.208 + 0.12 * (y + 0.1)
    if g.kind in ("sneakers", "boots"):
        tongue = (np.abs(x - middle) < 0.02) & (y < -0.035) & (y > -0.125) & (z > -0.795)
        colour[tongue] *= 0.7
        laces = tongue & (np.mod(y, 0.015) < 0.005)
        colour[laces] = 0.75 if g.kind == "sneakers" else 0.1
    if g.kind == "sneakers":
        cap = (y < -0.15) & (z < -0.795)
        colour[cap] = 0.5 * colour[cap] + 0.5 * g.trim.colours[0]
        stripe = np.mod(y + 0.6 * z, 0.03) < 0.009
        colour[stripe & (y > -0.085) & (y < 0.0) & (z < -0.77) & (np.abs(x - middle) > 0.025)] = g.trim.colours[0]
    colour[np.abs(z - g.hem + 0.006) < 0.0025] *= 0.6
    if g.kind in ("leather shoes", "boots"):
        colour[np.abs(y + 0.15) < 0.002] *= 0.55
    if g.kind not in ("heels", "flat shoes"):
        sole = z < -0.806
        colour[sole] = albedo(g.trim, x[sole], y[sole])
    return colour


def _layer_colour(who: Identity, kind: int, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The colour of one kind of layer, such as `clothing.BODY`."""
    if kind == c.BODY:
        return skin_colour(who, p)
    if kind == c.EYES:
        return eye_colour(who, p)
    if kind == c.TEETH:
        return np.full((len(p), 3), (0.62, 0.58, 0.5), np.float32)
    if kind == c.UPPER:
        return _upper(who.upper, p, parts)
    if kind == c.LOWER:
        return _lower(who.lower, p, parts)
    if kind == c.OUTER and who.outer is not None:
        return _upper(who.outer, p, parts)
    if kind == c.SHOES:
        return _shoes(who.shoes, p)
    if kind == c.CARDS:
        return card_hair(who.hair, p)
    if kind == c.STRAP:
        bag = next(thing for thing in who.things if thing.kind in ("backpack", "shoulder bag"))
        return albedo(bag.cloth, p[:, 0], p[:, 2])
    return shell_hair(who.hair, p)


def person_albedo(who: Identity, mesh: c.Dressed, kind: np.ndarray, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The colours of points on a person's surface: linear RGB, float32 (M, 3).

    Args:
        who: the person.
        mesh: the mesh on which the points lie.
        kind: int (M,), kind of the layer: `clothing.BODY` etc.
        p: float32 (M, 3), template positions or chart coordinates, as in `Dressed.template`.
        parts: float32 (M, 5), part weights as in `Dressed.parts`.
    """
    kind = kind.copy()
    body = np.flatnonzero(kind == c.BODY)
    # Where a pose pushes the skin through the cloth, the skin is painted like the cloth.
    q, hung = p[body], parts[body]
    margin = 0.02 if who.lower.skirted else 0.006
    kind[body[c.lower_fields(who.lower, q, hung).min(-1) > margin]] = c.LOWER
    kind[body[(c.upper_fields(who.upper, q, hung).min(-1) > 0.006) & (hung[:, HEAD] < 0.4)]] = c.UPPER
    kind[body[c.shoe_fields(who.shoes, q).min(1) > 0.003]] = c.SHOES
    out = np.zeros((len(p), 3), np.float32)
    for number in np.unique(kind):
        chosen = np.flatnonzero(kind == number)
        if number >= c.PIECE:
            out[chosen] = albedo(mesh.pieces[number - c.PIECE], p[chosen, 0], p[chosen, 2])
        else:
            out[chosen] = _layer_colour(who, int(number), p[chosen], parts[chosen])
    return out
