"""Hair: random styles, where hair grows, and the cards (tapering ribbons of strands) of which it consists.

A card starts on the scalp of the template, follows the combing direction, is bent by gravity and kept out of skull,
face and shoulders. Above the thin shell made by `clothing`, cards give a style its strands and its ragged outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffbody_ref.data.synthetic.textures import linear, noise

TONES = {
    "black": (24, 20, 18),
    "dark brown": (50, 34, 26),
    "brown": (86, 56, 36),
    "light brown": (128, 92, 60),
    "blond": (186, 150, 98),
    "dark blond": (146, 112, 74),
    "red": (130, 58, 32),
    "auburn": (92, 42, 28),
    "grey": (134, 130, 126),
    "white": (180, 177, 172),
}
_DYED = {"pink": (206, 104, 140), "blue": (58, 92, 160), "green": (60, 128, 92), "purple": (110, 66, 140)}
STYLES = ("bald", "shaved", "short", "side-parted", "swept-back", "spiky", "curly", "afro", "bob", "long", "wavy",
          "ponytail", "bun", "braids")  # fmt: skip
_MALE = (0.07, 0.13, 0.24, 0.16, 0.1, 0.08, 0.07, 0.04, 0.02, 0.03, 0.02, 0.01, 0.03, 0.0)
_FEMALE = (0.0, 0.01, 0.06, 0.02, 0.02, 0.01, 0.1, 0.05, 0.15, 0.2, 0.14, 0.12, 0.08, 0.04)

SKULL, SKULL_RADII = np.array([0.0, -0.057, 0.752]), np.array([0.079, 0.099, 0.1])
_HAIRLINE = np.array(  # (y, z) on the template, from the forehead over the temple and the ear to the nape
    [
        (-0.17, 0.803),
        (-0.135, 0.797),
        (-0.112, 0.775),
        (-0.096, 0.742),
        (-0.062, 0.742),
        (-0.045, 0.7),
        (-0.01, 0.655),
        (0.1, 0.65),
    ]
)


@dataclass(frozen=True)
class Hair:
    """Hair and beard.

    Attributes:
        style: one of `STYLES`.
        colour: float32 (3,), linear RGB.
        volume: thickness of the shell in metres.
        length: length of the cards in metres.
        part: template x of the parting.
        fringe: how far the fringe hangs over the forehead, in metres; 0 is no fringe.
        beard: amount of beard from 0 (none) to 1; below 0.5 it is stubble.
        moustache: whether there is a moustache, with or without a beard.
        words: words for the caption, such as "long wavy blond hair".
        beard_words: words for the beard, such as "a full beard"; "" if there is none.
        seed: seed of the strands.
    """

    style: str
    colour: np.ndarray
    volume: float
    length: float
    part: float
    fringe: float
    beard: float
    moustache: bool
    words: str
    beard_words: str
    seed: int


@dataclass(frozen=True)
class Cards:
    """Ribbons in template coordinates, with n vertices and m triangles.

    Attributes:
        vertices: float32 (n, 3), metres.
        core: float32 (n, 3), for each vertex the point from which its shading normal points away.
        faces: int32 (m, 3).
        chart: float32 (n, 3): position across the card in [-1, 1], along it in [0, 1], a random number of the card.
    """

    vertices: np.ndarray
    core: np.ndarray
    faces: np.ndarray
    chart: np.ndarray


def random_hair(rng: np.random.Generator, female: bool, old: bool, child: bool, tone: float) -> Hair:
    """Draw hair and beard for a person; `tone` is the skin's, from 0 (light) to 6 (dark)."""
    chances = np.array(_FEMALE if female else _MALE)
    if tone > 3.8:
        chances = chances * np.where([s in ("curly", "afro", "braids", "shaved") for s in STYLES], 3.0, 1.0)
    else:
        chances = chances * np.where([s == "afro" for s in STYLES], 0.25, 1.0)
    if child:
        chances[:2] = 0
    style = str(rng.choice(STYLES, p=chances / chances.sum()))
    names, weights = list(TONES)[:8], np.array([0.2, 0.2, 0.19, 0.12, 0.12, 0.09, 0.04, 0.04])
    if old:
        names, weights = ["grey", "white", "brown"], np.array([0.55, 0.3, 0.15])
    elif tone > 3.2:
        names, weights = ["black", "dark brown"], np.array([0.75, 0.25])
    name, rgb = str(rng.choice(names, p=weights)), None
    if not old and rng.random() < 0.03:
        name = str(rng.choice(list(_DYED)))
        rgb = _DYED[name]
    colour = np.clip(linear(np.array(rgb or TONES[name])) * np.exp(rng.normal(0, 0.1, 3)), 0.004, 0.9)
    volume = {"shaved": 0.002, "curly": rng.uniform(0.012, 0.028), "afro": rng.uniform(0.03, 0.06), "bun": 0.006}
    volume |= {"ponytail": 0.006, "braids": 0.006, "swept-back": rng.uniform(0.008, 0.016)}
    length = {"bob": rng.uniform(0.13, 0.2), "long": rng.uniform(0.25, 0.42), "wavy": rng.uniform(0.22, 0.4)}
    length |= {"ponytail": rng.uniform(0.14, 0.32), "braids": rng.uniform(0.2, 0.32), "curly": rng.uniform(0.05, 0.2)}
    length |= {"spiky": rng.uniform(0.012, 0.022), "afro": 0.016, "bun": rng.uniform(0.026, 0.04)}
    metres = float(length.get(style, rng.uniform(0.025, 0.05)))
    size = "shoulder-length " if style == "curly" and metres > 0.13 else ""
    words = {
        "bald": "a bald head",
        "shaved": f"shaved {name} hair",
        "curly": f"{size or 'short '}curly {name} hair",
        "afro": f"a {name} afro",
        "bob": f"a {name} bob",
        "wavy": f"long wavy {name} hair",
        "ponytail": f"{name} hair in a ponytail",
        "bun": f"{name} hair in a bun",
        "braids": f"{name} hair in two braids",
    }.get(style, f"{style} {name} hair")
    fringe = float(rng.uniform(0.008, 0.025)) if style in ("bob", "long", "short") and rng.random() < 0.4 else 0.0
    if fringe and style != "short":
        words += " with a fringe"
    beard, beard_words, moustache = 0.0, "", False
    if not female and not child and rng.random() < 0.42:
        kind = str(rng.choice(["stubble", "a short beard", "a full beard", "a moustache", "a goatee"]))
        beard = {"stubble": rng.uniform(0.25, 0.45), "a full beard": 1.0, "a moustache": 0.55}.get(kind, 0.75)
        beard_words, moustache = kind, kind != "stubble" and (kind != "a short beard" or rng.random() < 0.8)
    return Hair(
        style,
        colour.astype(np.float32),
        float(volume.get(style, rng.uniform(0.004, 0.011))),
        metres,
        float(rng.uniform(0.015, 0.04) * rng.choice([-1, 1])),
        fringe,
        float(beard),
        bool(moustache),
        words,
        beard_words,
        int(rng.integers(1 << 20)),
    )


def scalp_field(hair: Hair, p: np.ndarray) -> np.ndarray:
    """The distance in metres of template positions (..., 3) from the hairline, positive inside it."""
    line = np.interp(p[..., 1], _HAIRLINE[:, 0], _HAIRLINE[:, 1])
    ragged = 0.004 * noise(1, p[..., 0] * 5 + hair.seed * 0.01, p[..., 1] * 3)
    ear = np.where(p[..., 2] < 0.755, (0.0795 - np.abs(p[..., 0])) * 3, 1.0)
    return np.minimum(p[..., 2] - line + ragged, ear).astype(np.float32)


def beard_field(hair: Hair, p: np.ndarray) -> np.ndarray:
    """The distance in metres of template positions (..., 3) on the head from the beard's outline, positive inside."""
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    cheek = 0.652 + 1.2 * np.clip(x - 0.023, 0, 0.045)  # rises to the sideburns
    jaw = np.minimum(np.minimum(cheek - z, z - 0.606), -0.035 - y)
    mouth = 1.25 * np.hypot(x / 1.45, z - 0.6607) - 0.0165  # free of beard around the lips
    field = np.minimum(jaw, mouth)
    if hair.beard_words == "a goatee":
        field = np.minimum(field, 0.024 - x - 0.25 * np.clip(0.64 - z, 0, 1))
    if hair.beard_words == "a moustache":
        field = np.full_like(field, -1.0)
    if hair.moustache:
        lip = np.minimum(np.minimum(0.6808 - 0.3 * x - z, z - 0.671 + 0.2 * x), 0.03 - x) - 0.0012
        lip = lip + 0.0012 * noise(0, p[..., 0] * 9, z * 5)
        field = np.maximum(field, np.where(y < -0.1, lip, -1.0))
    return field.astype(np.float32)


def _outward(p: np.ndarray) -> np.ndarray:
    """The unit normals of the skull at points (..., 3)."""
    normal = (p - SKULL) / SKULL_RADII**2
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)


def _keep_out(p: np.ndarray, lift: np.ndarray) -> np.ndarray:
    """Push points (n, 3) out of the skull, the face, the neck and the shoulders.

    Args:
        p: (n, 3), points.
        lift: (n,), distance in metres that the points keep from the skull.
    """
    q = (p - SKULL) / (SKULL_RADII + 0.004 + lift[:, None])
    far = np.linalg.norm(q, axis=1, keepdims=True)
    p = SKULL + np.where((far < 1) & (p[:, 2:] > 0.66), q / np.maximum(far, 0.05), q) * (
        SKULL_RADII + 0.004 + lift[:, None]
    )
    x, y, z = p.T
    side = np.where(x < 0, -1.0, 1.0)
    face = (y < -0.075) & (z < 0.785) & (z > 0.6)
    x = np.where(face, side * np.maximum(np.abs(x), 0.071 + 0.12 * np.clip(0.07 - np.abs(z - 0.7), -0.1, 0)), x)
    neck = (z < 0.66) & (np.hypot(x, y + 0.025) < 0.066)
    out = 0.066 / np.maximum(np.hypot(x, y + 0.025), 1e-3)
    x, y = np.where(neck, x * out, x), np.where(neck, (y + 0.025) * out - 0.025, y)
    back = np.interp(z, [0.3, 0.45, 0.55, 0.6], [0.055, 0.09, 0.08, 0.05])
    front = np.interp(z, [0.3, 0.45, 0.55, 0.6], [-0.19, -0.165, -0.12, -0.08])
    low = z < 0.6
    y = np.where(low, np.where(y > -0.035, np.maximum(y, back), np.minimum(y, front)), y)
    return np.stack([x, y, z], 1)


def _grow(
    roots: np.ndarray,
    direction: np.ndarray,
    length: np.ndarray,
    steps: int,
    gravity: float,
    lift: np.ndarray,
    free: bool = False,
) -> np.ndarray:
    """Grow strands from their roots, bent by gravity.

    Args:
        roots: (n, 3).
        direction: (n, 3), initial directions.
        length: (n,), metres.
        steps: number of steps.
        gravity: how much each step is bent downwards, 0 to 1.
        lift: (n,), distance from the skull in metres.
        free: False lets the strands lie on the head.

    Returns:
        The paths (n, steps + 1, 3).
    """
    path, p, d = [roots], roots, direction
    for step in range(steps):
        d = d * (1 - gravity) + np.array([0, 0, -1.0]) * gravity
        if not free:
            out = _outward(p)
            far = np.linalg.norm((p - SKULL) / (SKULL_RADII + 0.004 + lift[:, None]), axis=1)
            allowed = np.clip(3.0 * (1 - far), -0.5, 0.5) + (0.3 if step == 0 else 0.0)
            excess = (d * out).sum(1) - allowed
            d = d - out * (np.maximum(excess, 0) * (p[:, 2] > 0.7))[:, None]
        d = d / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-9)
        moved = _keep_out(p + d * (length / steps)[:, None], lift * min(1.0, 0.4 + 0.6 * step))
        d = moved - p
        d = d / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-9)
        p = moved
        path.append(p)
    return np.stack(path, 1)


def _ribbons(paths: np.ndarray, core: np.ndarray, width: np.ndarray, rng: np.random.Generator) -> Cards:
    """Cards along paths.

    Args:
        paths: (n, s, 3).
        core: (n, s, 3), points from which the cards face away.
        width: (n,), half widths in metres, which taper to the tip.
        rng: source of randomness.
    """
    n, s, _ = paths.shape
    along = np.gradient(paths, axis=1)
    away = paths - core
    away = away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-9)
    # The random part gives strands that point away from the core a side as well.
    side = np.cross(along, away + 0.3 * rng.normal(0, 1, (n, 1, 3)))
    side /= np.maximum(np.linalg.norm(side, axis=-1, keepdims=True), 1e-9)
    v = np.linspace(0, 1, s)
    half = width[:, None] * (1 - 0.8 * v**2.5) * np.minimum(0.6 + 3 * v, 1)
    vertices = np.stack([paths - side * half[..., None], paths + side * half[..., None]], 2)
    number = np.arange(n * s * 2).reshape(n, s, 2)
    a, b, c, d = number[:, :-1, 0], number[:, :-1, 1], number[:, 1:, 1], number[:, 1:, 0]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    chart = np.empty((n, s, 2, 3))
    chart[..., 0], chart[..., 1], chart[..., 2] = [-1.0, 1.0], v[:, None], rng.random(n)[:, None, None]
    cores = np.repeat(core[:, :, None], 2, 2)
    return Cards(
        vertices.reshape(-1, 3).astype(np.float32),
        cores.reshape(-1, 3).astype(np.float32),
        faces.astype(np.int32),
        chart.reshape(-1, 3).astype(np.float32),
    )


def _joined(cards: list[Cards]) -> Cards:
    """Several groups of cards as one."""
    starts = np.cumsum([0] + [len(c.vertices) for c in cards])
    return Cards(
        np.concatenate([c.vertices for c in cards]),
        np.concatenate([c.core for c in cards]),
        np.concatenate([c.faces + start for c, start in zip(cards, starts[:-1], strict=True)]).astype(np.int32),
        np.concatenate([c.chart for c in cards]),
    )


def _head_core(paths: np.ndarray) -> np.ndarray:
    """The points on the axis of head and neck at the heights of the paths."""
    return np.stack([0 * paths[..., 0], np.full(paths.shape[:-1], -0.045), np.minimum(paths[..., 2], 0.76)], -1)


def _bundle(centre: np.ndarray, radius: np.ndarray, count: int, rng: np.random.Generator) -> Cards:
    """`count` strands around a path (s, 3) with radius (s,), for tails and braids."""
    turn = rng.uniform(0, 2 * np.pi, count)
    reach = np.sqrt(rng.uniform(0.3, 1, count))
    around = np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1) * reach[:, None]
    paths = centre + around[:, None] * radius[:, None]
    paths = paths + rng.normal(0, 0.002, (count, 1, 3)) * np.linspace(0, 3, len(centre))[:, None]
    return _ribbons(paths, np.broadcast_to(centre, paths.shape), np.full(count, 0.008), rng)


def _tail(start: np.ndarray, away: np.ndarray, length: float, radius: float, rng: np.random.Generator) -> Cards:
    """A ponytail that starts in the direction `away`."""
    path = _grow(start[None], away[None], np.array([length]), 10, 0.38, np.array([0.015]), True)[0]
    v = np.linspace(0, 1, len(path))
    return _bundle(path, radius * (0.35 + 2.6 * v * (1 - v) ** 1.1 + 0.1 * (1 - v)), 70, rng)


def _braid(side: float, length: float, rng: np.random.Generator) -> Cards:
    """A braid; `side` is 1 on the person's left, -1 on their right."""
    start = np.array([side * 0.07, -0.005, 0.68])
    path = _grow(start[None], np.array([[side * 0.5, -0.35, -0.7]]), np.array([length]), 22, 0.3, np.zeros(1), True)[0]
    v = np.linspace(0, 1, len(path))
    return _bundle(path, 0.014 * (1.1 - 0.5 * v) * (0.72 + 0.28 * np.cos(np.arange(len(path)) * 2.1)), 60, rng)


def _bun(size: float, rng: np.random.Generator) -> Cards:
    """A bun: a coil of strands around a ball of radius `size` at the back of the head."""
    centre = np.array([0.0, 0.04 + size * 0.55, 0.79])
    count, steps = 130, 7
    axis = rng.normal(0, 1, (count, 3)) * [0.5, 1.0, 0.5]
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    first = np.cross(axis, rng.normal(0, 1, (count, 3)))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    angle = np.linspace(0, 2.2, steps)[None, :, None]
    radius = size * rng.uniform(0.93, 1.04, (count, 1, 1))
    paths = centre + radius * (first[:, None] * np.cos(angle) + np.cross(axis, first)[:, None] * np.sin(angle))
    return _ribbons(paths, np.broadcast_to(centre, paths.shape), np.full(count, 0.007), rng)


def _combed(style: str, hair: Hair, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The directions (n, 3) in which a style is combed at points p (n, 3) of the scalp."""
    out = _outward(p)
    away = np.sign(p[:, 0] - hair.part)
    down = np.clip((SKULL[2] + 0.06 - p[:, 2]) / 0.1, 0, 1)
    flows = {
        "side-parted": np.stack([0.9 * away, 0.1 - 0 * away, -0.5 * down], 1),
        "swept-back": np.stack([0.1 * p[:, 0] / 0.08, 1.0 + 0 * away, -0.6 * down], 1),
        "short": np.stack([0.35 * np.sign(hair.part) + 0 * away, -0.75 + 0 * away, -0.9 * down], 1),
    }
    flow = flows.get(style, np.stack([0.8 * away, 0.25 + 0 * away, -0.4 - 0.6 * down], 1))
    if style in ("spiky", "afro"):
        flow = out + (style == "spiky") * np.array([0, -0.1, 0.25])
    flow = flow - 0.8 * out * (flow * out).sum(1, keepdims=True) * (style not in ("spiky", "afro"))
    flow = flow / np.maximum(np.linalg.norm(flow, axis=1, keepdims=True), 1e-9)
    rise = {"short": 0.28, "side-parted": 0.22, "swept-back": 0.25, "curly": 0.5}.get(style, 0.12)
    return flow + rise * out + rng.normal(0, 0.12, p.shape)


def hair_cards(hair: Hair, scalp: np.ndarray, flat: bool) -> Cards | None:
    """The cards of a style.

    Args:
        hair: the style.
        scalp: (n, 3), points of the scalp, among which the roots are chosen at random.
        flat: whether a hat is worn.

    Returns:
        The cards; None if the style has none.
    """
    rng = np.random.Generator(np.random.Philox(key=hair.seed))
    if hair.style in ("bald", "shaved"):
        return None
    if hair.style == "bun":
        return None if flat else _bun(hair.length, rng)
    if hair.style == "ponytail":
        low = flat or hair.part < 0
        start = np.array([0.0, 0.045, 0.705]) if low else np.array([0.0, 0.045, 0.795])
        return _tail(start, np.array([0.0, 0.9, 0.05 if low else 0.35]), hair.length, 0.03, rng)
    if hair.style == "braids":
        return _joined([_braid(side, hair.length, rng) for side in (-1.0, 1.0)])
    long = hair.style in ("bob", "long", "wavy") or (hair.style == "curly" and hair.length > 0.1)
    if flat:
        scalp = scalp[scalp[:, 2] < 0.775] if long or hair.style != "afro" else scalp[:0]
        if not len(scalp):
            return None
    count = 680 if long else 760
    steps = {"wavy": 14, "curly": 16, "spiky": 2, "afro": 2}.get(hair.style, 10 if long else 4)
    roots = scalp[rng.integers(len(scalp), size=count)] + rng.normal(0, 0.004, (count, 3))
    lift = np.abs(rng.normal(0.003, 0.004, count)) + 0.8 * hair.volume * (0.3 if flat else 1.0)
    roots = roots + _outward(roots) * (0.75 * hair.volume if hair.style in ("afro", "curly") else 0.002)
    length = hair.length * rng.uniform(0.7, 1.1, count)
    if hair.style in ("short", "side-parted", "swept-back"):  # shorter at the sides
        length *= np.clip((roots[:, 2] - 0.7) / 0.1, 0.25, 1)
    if hair.style == "bob" or hair.style in ("long", "wavy"):  # to one height
        length = np.maximum(hair.length + (roots[:, 2] - 0.76) * 1.2 + rng.normal(0, 0.012, count), 0.05)
    gravity = {"spiky": 0.0, "afro": 0.0, "curly": 0.22}.get(hair.style, 0.34 if long else 0.12)
    paths = _grow(
        roots, _combed(hair.style, hair, roots, rng), length, steps, gravity, lift, hair.style in ("spiky", "afro")
    )
    if hair.style in ("wavy", "curly"):
        v = np.linspace(0, 1, steps + 1)
        cycles, size = (2.2, 0.011) if hair.style == "wavy" else (1.2 + 12 * hair.length, 0.009)
        phase = rng.uniform(0, 2 * np.pi, (count, 1)) if hair.style == "curly" else 6 * roots[:, :1] / 0.08
        wave = 2 * np.pi * cycles * v + phase
        swing = np.stack([np.cos(wave), np.sin(wave), 0.5 * np.sin(wave)], -1) * (size * np.minimum(4 * v, 1))[:, None]
        paths = paths + swing
    thin, thick = (
        (0.005, 0.009)
        if long and hair.style != "curly"
        else (0.0015, 0.003)
        if hair.style in ("spiky", "curly")
        else (0.0022, 0.0045)
    )
    width = rng.uniform(thin, thick, count)
    cards = [_ribbons(paths, _head_core(paths), width, rng)]
    if hair.fringe and not flat:
        front = scalp[(scalp[:, 1] < -0.115) & (np.abs(scalp[:, 0]) < 0.06) & (scalp[:, 2] < 0.835)]
        roots = front[rng.integers(len(front), size=120)] + rng.normal(0, 0.003, (120, 3))
        paths = _fringe(roots, hair, rng)
        cards.append(_ribbons(paths, _head_core(paths), rng.uniform(0.003, 0.006, 120), rng))
    return _joined(cards)


def _fringe(roots: np.ndarray, hair: Hair, rng: np.random.Generator) -> np.ndarray:
    """The paths of a fringe from the front of the scalp over the forehead to just above the brows."""
    end = 0.785 - hair.fringe + rng.normal(0, 0.006, len(roots))
    v = np.linspace(0, 1, 6)[None, :, None]
    tip = np.stack([roots[:, 0] * 1.05 + 0.3 * hair.part, -0.163 + 6.0 * roots[:, 0] ** 2, end], 1)
    bulge = np.stack([0 * end, np.full_like(end, -0.008), np.full_like(end, 0.004)], 1)[:, None] * np.sin(np.pi * v)
    return roots[:, None] + (tip - roots)[:, None] * v + bulge


def beard_cards(hair: Hair, jaw: np.ndarray) -> Cards | None:
    """The short cards of a beard at points (n, 3) inside its outline; None for stubble or no beard."""
    jaw = jaw[jaw[:, 2] < 0.664]
    if hair.beard < 0.5 or hair.beard_words == "a moustache" or not len(jaw):
        return None
    rng = np.random.Generator(np.random.Philox(key=hair.seed + 1))
    count = 420 if hair.beard == 1.0 else 260
    roots = jaw[rng.integers(len(jaw), size=count)] + rng.normal(0, 0.0015, (count, 3))
    out = roots - np.array([0.0, -0.07, 0.68])
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    length = rng.uniform(0.003, 0.006, count) * (3.0 if hair.beard == 1.0 else 0.9)
    v = np.linspace(0, 1, 4)[None, :, None]
    aside = np.stack([np.sign(roots[:, 0]) * 0.35, 0 * length, -1 + 0 * length], 1)
    paths = roots[:, None] + length[:, None, None] * v * (0.18 * out + 0.9 * aside)[:, None] + 0.001 * out[:, None]
    core = np.broadcast_to(np.array([0.0, -0.07, 0.68]), paths.shape)
    return _ribbons(paths, core, rng.uniform(0.0008, 0.0016, count), rng)
