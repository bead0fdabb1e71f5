"""Colours of skin, face, eyes and hair at template positions. Colours are linear RGB.

In this module p are template positions (M, 3), x and z their coordinates (x often as |x|), and c is a complexion.
"""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.hair import Hair, beard_field, scalp_field
from diffbody_ref.data.synthetic.textures import noise
from diffbody_ref.data.synthetic.wardrobe import Complexion, Identity

EYE = np.array([0.031, -0.1245, 0.7285])  # centre of the left eyeball, radius 14 mm

# Outlines of the lips in metres: x, then z of the outer upper, inner upper, inner lower and outer lower outline.
_LIPS = np.array(
    [
        (0.0, 0.6690, 0.6620, 0.6600, 0.6490),
        (0.006, 0.6706, 0.6622, 0.6600, 0.6494),
        (0.0155, 0.6682, 0.6620, 0.6602, 0.6525),
        (0.0225, 0.6642, 0.6618, 0.6606, 0.6573),
        (0.0265, 0.6616, 0.6616, 0.6610, 0.6608),
        (0.1, 0.6616, 0.6616, 0.6616, 0.6616),
    ]
)


def _mix(colour: np.ndarray, other: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours between `colour` and `other` by weights (M,), which are clipped to [0, 1]."""
    return colour + (other - colour) * np.clip(weight, 0, 1)[:, None]


def _near(x: np.ndarray, z: np.ndarray, spot: tuple[float, float], width: tuple[float, float]) -> np.ndarray:
    """A soft spot (Gaussian) of height 1 around a point."""
    return np.exp(-0.5 * (((x - spot[0]) / width[0]) ** 2 + ((z - spot[1]) / width[1]) ** 2))


def _line(x: np.ndarray, z: np.ndarray, a: tuple[float, float], b: tuple[float, float], width: float) -> np.ndarray:
    """A soft line from a to b."""
    along = np.array(b) - np.array(a)
    t = np.clip(((x - a[0]) * along[0] + (z - a[1]) * along[1]) / (along @ along), 0, 1)
    far = (x - a[0] - t * along[0]) ** 2 + (z - a[1] - t * along[1]) ** 2
    return np.exp(-0.5 * far / width**2) * np.sqrt(1 - t**4)


def _step(value: np.ndarray, width: float) -> np.ndarray:
    """A smooth step: 0 below -width, 1 above width."""
    t = np.clip(0.5 + 0.5 * value / width, 0, 1)
    return t * t * (3 - 2 * t)


def _brows(who: Identity, colour: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Eyebrows."""
    x, z = np.abs(p[:, 0]), p[:, 2]
    t = (x - 0.0125) / 0.042
    arc = 0.7497 + 0.0053 * np.sin(2.4 * np.clip(t, 0, 1))
    half = who.complexion.brow * (0.0036 - 0.0024 * np.clip(t, 0, 1) ** 1.5)
    hairs = noise(0, x * 5.0 - z * 3.0, z * 9.0)
    inside = _step(half - np.abs(z - arc) + 0.0007 * hairs, 0.0016) * _step(np.minimum(t, 1 - t), 0.09)
    tone = np.minimum(who.hair.colour * 0.6, who.complexion.skin * 0.35)
    return _mix(colour, tone, inside * (0.85 + 0.15 * hairs))


def _lids(c: Complexion, colour: np.ndarray, p: np.ndarray, female: bool) -> np.ndarray:
    """Eye sockets, lids and lashes."""
    q = np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], 1) - EYE
    reach, high = np.linalg.norm(q, axis=1), q[:, 2]
    x, z = np.abs(p[:, 0]), p[:, 2]
    colour = _mix(colour, c.skin * np.array([0.55, 0.42, 0.4]), 0.32 * _near(x, z, (0.0165, 0.733), (0.006, 0.009)))
    colour = _mix(colour, c.skin * np.array([0.6, 0.48, 0.48]),
                  (0.16 + 0.25 * c.wrinkles) * _near(x, z, (0.029, 0.7175), (0.013, 0.0035)))  # fmt: skip
    crease = np.exp(-0.5 * ((reach - 0.0192) / 0.0011) ** 2) * _step(high - 0.002, 0.003)
    colour = _mix(colour, c.skin * 0.35, 0.42 * crease * (np.abs(q[:, 0]) < 0.02))
    lid = _step(0.0188 - reach, 0.001) * (high > 0.001)
    colour = _mix(colour, c.lips * 0.5 + c.skin * 0.25, lid * (0.1 + 0.45 * c.makeup))
    upper = _step(0.0157 + 0.0007 * (female or c.makeup > 0) - reach, 0.0006) * (high > -0.001)
    lower = _step(0.0152 - reach, 0.0005) * (high <= -0.001)
    colour = _mix(colour, np.full(3, 0.012), 0.95 * upper)
    return _mix(colour, c.skin * np.array([0.5, 0.3, 0.3]), (0.5 + 0.3 * c.makeup) * lower)


def _mouth(c: Complexion, colour: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Lips, and the inside of the mouth."""
    x, z = np.abs(p[:, 0]), p[:, 2]
    top, upper, lower, bottom = (np.interp(x, _LIPS[:, 0], _LIPS[:, i]) for i in range(1, 5))
    on = _step(np.minimum(top - z, z - bottom), 0.0011) * (x < 0.0268)
    above = _step(z - (upper + lower) / 2, 0.001)
    tint = np.where(above[:, None] > 0.5, c.lips * 0.82, c.lips * 1.08)
    colour = _mix(colour, tint, 0.8 * on)
    colour = _mix(colour, np.minimum(c.lips * 1.6 + 0.06, 0.9), 0.28 * _near(x, z, (0.006, 0.6545), (0.009, 0.0018)))
    gap = _step(np.minimum(upper + 0.0006 - z, z - lower + 0.0006), 0.0008) * (x < 0.0262)
    colour = _mix(colour, c.lips * np.array([0.16, 0.1, 0.1]), 0.9 * gap)
    colour = _mix(colour, c.skin * 0.35, 0.3 * _near(x, z, (0.0275, 0.6605), (0.002, 0.0025)))  # corners
    colour = _mix(colour, c.skin * 0.5, 0.22 * _near(x, z, (0.0, 0.6435), (0.012, 0.0025)))  # below the lower lip
    inside = (x < 0.032) & (z > 0.646) & (z < 0.69) & (p[:, 1] > -0.139 + 26 * x**2)
    return _mix(colour, np.array([0.05, 0.012, 0.01]), inside.astype(float))


def _wrinkles(c: Complexion, colour: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Nasolabial folds, and with age wrinkles of forehead and eyes."""
    x, z = np.abs(p[:, 0]), p[:, 2]
    amount = (0.1 + 0.45 * c.wrinkles) * _line(x, z, (0.0165, 0.69), (0.033, 0.655), 0.0017)
    if c.wrinkles:
        rows = np.abs((z - 0.766 - 0.12 * x**2 / 0.05) / 0.0085)
        brow = np.exp(-0.5 * ((rows - np.rint(rows)) / 0.11) ** 2) * (z > 0.766) * (z < 0.797) * _step(0.045 - x, 0.012)
        feet = sum(_line(x, z, (0.05, 0.729), (0.062, 0.729 + d), 0.0009) for d in (-0.007, 0.0, 0.008))
        bag = _line(x, z, (0.02, 0.714), (0.043, 0.715), 0.0012)
        amount = amount + c.wrinkles * (0.3 * brow + 0.35 * feet + 0.35 * bag)
    return _mix(colour, c.skin * np.array([0.42, 0.32, 0.3]), amount)


def _face(who: Identity, colour: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The features of the face over the skin's colours (M, 3) at the head's front."""
    c, x, z = who.complexion, np.abs(p[:, 0]), p[:, 2]
    female = who.phenotype["gender"] > 0.5
    red = c.skin * np.array([1.08, 0.72, 0.68])
    colour = _mix(
        colour, red, (0.2 + 0.5 * c.blush * (0.5 + 0.5 * female)) * _near(x, z, (0.044, 0.695), (0.015, 0.013))
    )
    colour = _mix(colour, red, 0.35 * _near(x, z, (0.0, 0.692), (0.011, 0.01)))
    colour = _mix(colour, np.minimum(c.skin * 1.12, 0.9), 0.4 * _near(x, z, (0.0, 0.715), (0.0035, 0.022)))
    colour = _mix(colour, c.skin * np.array([0.62, 0.52, 0.5]), 0.3 * _near(x, z, (0.0135, 0.7), (0.003, 0.014)))
    if c.freckles:
        dots = _step(noise(0, p[:, 0] * 9 + c.seed * 0.013, z * 9) - 1.5, 0.35)
        where = np.exp(-0.5 * ((z - 0.703) / 0.016) ** 2) * _step(0.058 - x, 0.015)
        colour = _mix(colour, c.skin * np.array([0.6, 0.42, 0.33]), 0.75 * c.freckles * dots * where)
    colour = _wrinkles(c, colour, p)
    male = not female and who.phenotype["age"] > 0.5
    shadow = max(who.hair.beard if who.hair.beard_words == "stubble" else 0.0, 0.13 * male)
    if shadow or who.hair.beard >= 0.5:
        inside = beard_field(who.hair, p) if who.hair.beard >= 0.5 else _stubble_field(p)
        grain = 0.8 + 0.2 * noise(0, p[:, 0] * 9, z * 5) + 0.1 * noise(1, p[:, 0] * 3, z * 2)
        full = 0.92 if who.hair.beard >= 0.5 else shadow
        amount = full * grain * _step(inside - 0.0015 + 0.002 * (grain - 0.8), 0.0035)
        colour = _mix(colour, who.hair.colour * 0.8 + 0.06 * c.skin, amount)
    colour = _brows(who, colour, p)
    colour = _lids(c, colour, p, female)
    nostril = _near(x, z, (0.0085, 0.6838), (0.0034, 0.0017)) * (p[:, 1] < -0.13)
    colour = _mix(colour, c.skin * np.array([0.16, 0.09, 0.08]), 0.85 * nostril)
    return _mouth(c, colour, p)


def _stubble_field(p: np.ndarray) -> np.ndarray:
    """The distance in metres from the outline of stubble, positive inside it."""
    x, z = np.abs(p[:, 0]), p[:, 2]
    jaw = np.minimum(np.minimum(0.66 + 0.85 * np.clip(x - 0.034, 0, 0.05) - z, z - 0.604), -0.045 - p[:, 1])
    lip = np.minimum(np.minimum(0.682 - z, z - 0.66), 0.032 - x)
    return np.maximum(jaw, np.where(p[:, 1] < -0.1, lip, -1.0))


def skin_colour(who: Identity, p: np.ndarray) -> np.ndarray:
    """The colours (M, 3) of skin anywhere on the body, with the face, the scalp's hair and the straps of sandals."""
    c = who.complexion
    tone = 0.05 * noise(2, p[:, 0] + p[:, 1], p[:, 2] + 0.5 * p[:, 1])
    tone = tone + 0.025 * noise(0, p[:, 0] * 2.3 + p[:, 1], p[:, 2] * 2.3)
    colour = (c.skin * np.exp(tone)[:, None]).astype(np.float32)
    x, z = np.abs(p[:, 0]), p[:, 2]
    rosy = sum(
        np.exp(-0.5 * (((np.stack([x, p[:, 1], z], 1) - np.array(spot)) / size) ** 2).sum(1))
        for spot, size in (
            ((0.158, -0.1, -0.37), 0.04),
            ((0.33, 0.03, 0.35), 0.03),
            ((0.47, -0.27, 0.17), 0.03),
            ((0.085, -0.02, 0.72), 0.016),
        )
    )
    colour = _mix(colour, c.skin * np.array([0.98, 0.72, 0.68]), 0.6 * rosy)
    front = (z > 0.595) & (p[:, 1] < -0.045) & (x < 0.1)
    colour[front] = _face(who, colour[front], p[front])
    if who.hair.style != "bald":
        scalp = np.flatnonzero((z > 0.64) & (x < 0.1))
        q = p[scalp]
        weight = np.clip(scalp_field(who.hair, q) / 0.01, 0, 1) * (0.78 + 0.15 * noise(0, q[:, 0] * 4, q[:, 2] * 4))
        colour[scalp] = _mix(colour[scalp], who.hair.colour * 0.8, weight)
    if who.shoes.kind == "sandals":
        foot = z < -0.74
        band = (np.abs(p[:, 1] + 0.115) < 0.013) | (np.abs(p[:, 1] + 0.055 - 0.4 * (z + 0.78)) < 0.011)
        band |= (np.abs(z + 0.762) < 0.009) & (p[:, 1] > -0.05)
        colour[foot & band & (z > -0.806)] = who.shoes.cloth.colours[0]
    return colour.astype(np.float32)


def eye_colour(who: Identity, p: np.ndarray) -> np.ndarray:
    """The colours (M, 3) of eyeballs: white, iris with a dark rim, pupil and a catchlight."""
    c = who.complexion
    q = np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], 1) - EYE
    depth = np.maximum(-q[:, 1], 1e-4)
    across, up = q[:, 0] / depth, q[:, 2] / depth
    angle = np.hypot(across, up)
    white = np.array([0.6, 0.575, 0.555]) * (1 - 0.45 * np.clip(up * 1.6, 0, 1))[:, None]
    white = _mix(white, np.array([0.5, 0.25, 0.22]), 0.5 * _step(np.abs(across) - 0.85, 0.3))
    rays = 0.22 * noise(0, np.arctan2(up, across) * 0.4, angle * 0.1)
    iris = c.iris * (np.exp(rays) * (1.25 - 0.9 * up))[:, None]
    colour = _mix(white, iris, _step(0.475 - angle, 0.04))
    colour = _mix(colour, c.iris * 0.2, 0.75 * np.exp(-0.5 * ((angle - 0.45) / 0.035) ** 2))
    colour = _mix(colour, np.full(3, 0.004), _step(0.2 - angle, 0.03))
    side = np.sign(p[:, 0])
    shine = np.hypot(across * side + 0.13, up - 0.17)  # on the same side of both eyes
    return _mix(colour, np.full(3, 0.95), 0.9 * _step(0.085 - shine, 0.03)).astype(np.float32)


def shell_hair(hair: Hair, p: np.ndarray) -> np.ndarray:
    """The colours (M, 3) of the hair's shell, with strands in the combing direction of the style."""
    if hair.style in ("curly", "afro"):
        strand = noise(1, p[:, 0] * 2.1 + p[:, 1], p[:, 2] * 2.1 - p[:, 1])
        strand = strand + 0.5 * noise(0, p[:, 0] * 3, p[:, 2] * 3 + p[:, 1])
    else:
        top = np.clip((p[:, 2] - 0.79) / 0.04, 0, 1)
        around = np.arctan2(p[:, 0], -(p[:, 1] + 0.04)) * 0.11 * (1 - top) + p[:, 1] * top
        along = p[:, 2] * (1 - top) + np.abs(p[:, 0] - hair.part) * top
        if hair.style in ("swept-back", "ponytail", "bun"):
            around, along = p[:, 0] + 0.5 * np.abs(p[:, 2] - 0.76) * np.sign(p[:, 0]), p[:, 1]
        strand = noise(0, around * 2.6 + 0.01 * hair.seed, along * 0.3) + 0.5 * noise(1, around * 1.2, along * 0.25)
    parting = np.exp(-0.5 * ((p[:, 0] - hair.part) / 0.0018) ** 2) * (p[:, 2] > 0.82) * (p[:, 1] < -0.02)
    if hair.style not in ("side-parted", "bob", "long", "wavy"):
        parting = parting * 0
    dark = np.exp(0.3 * strand) * (1 - 0.4 * parting)
    return (hair.colour * 0.85 * dark[:, None]).astype(np.float32)


def card_hair(hair: Hair, chart: np.ndarray) -> np.ndarray:
    """The colours (M, 3) of cards of hair at chart coordinates (M, 3), see `Cards.chart`."""
    across, along, number = chart.T
    strand = noise(0, number * 7.3 + across * 0.022, along * 0.06 + number)
    tone = 0.26 * (2 * number - 1) + 0.26 * strand + 0.12 * along
    root = 0.6 + 0.4 * np.clip(along * 3.5, 0, 1)
    edge = 1 - 0.25 * across**2
    return (hair.colour * (np.exp(tone) * root * edge)[:, None]).astype(np.float32)
