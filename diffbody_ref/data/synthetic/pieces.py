"""The meshes of accessories (see `accessories`), soles and hoods, in template coordinates.

A piece either follows a frame of `BodyModel.frames`, or it hangs: then only its pivot follows, and the piece stays
upright whatever the arm does (a cup, a bag). In the part map, worn things (glasses, hats, scarves, earrings, straps)
belong to the part on which they are worn, because a part network has to find the head under a hat. Carried things
(bags, held things) are background, because they do not belong to anybody's body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffbody_ref.data.synthetic.accessories import Thing
from diffbody_ref.data.synthetic.hair import SKULL
from diffbody_ref.data.synthetic.textures import Material

HEAD_PART, TORSO_PART, FEET_PART, NO_PART = 0, 1, 4, -1


@dataclass(frozen=True)
class Piece:
    """A mesh in template coordinates.

    Attributes:
        vertices: (n, 3), metres.
        faces: int (m, 3).
        frame: name of the frame that it follows.
        pivot: (3,), template point that a hanging piece follows; its vertices are relative to it in world axes. None
            if the piece does not hang.
        part: HEAD_PART, TORSO_PART, FEET_PART or NO_PART.
        cloth: material.
        chart: (n, 2), coordinates of the material in metres.
        gloss: strength and exponent of the highlights.
    """

    vertices: np.ndarray
    faces: np.ndarray
    frame: str
    pivot: np.ndarray | None
    part: int
    cloth: Material
    chart: np.ndarray
    gloss: tuple[float, float] = (0.0, 1.0)


Mesh = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(vertices, faces, chart) as in `Piece`."""


def _grid(points: np.ndarray, closed: bool = False) -> Mesh:
    """A mesh over a grid of points (r, c, 3); if it is closed, the last column is connected to the first."""
    rows, columns, _ = points.shape
    if closed:
        points, columns = np.concatenate([points, points[:, :1]], 1), columns + 1
    n = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = n[:-1, :-1], n[:-1, 1:], n[1:, 1:], n[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    across = np.concatenate([np.zeros((rows, 1)), np.linalg.norm(np.diff(points, axis=1), axis=-1).cumsum(1)], 1)
    down = np.concatenate([np.zeros((1, columns)), np.linalg.norm(np.diff(points, axis=0), axis=-1).cumsum(0)], 0)
    return points.reshape(-1, 3), faces, np.stack([across, down], -1).reshape(-1, 2)


def _tube(path: np.ndarray, radius: float | np.ndarray, sides: int = 6, flat: float = 1.0) -> Mesh:
    """A tube around a path (n, 3); `flat` is its relative thickness in one direction, for straps and scarves."""
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    helper = np.where(np.abs(along[:, 1:2]) > 0.9, [[1.0, 0, 0]], [[0.0, 1.0, 0]])
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = first[:, None] * np.cos(turn)[:, None] + flat * second[:, None] * np.sin(turn)[:, None]
    return _grid(path[:, None] + ring * np.reshape(radius, (-1, 1, 1)), closed=True)


def _lathe(profile: np.ndarray, sides: int = 20, scale: tuple[float, float] = (1.0, 1.0)) -> Mesh:
    """A surface of revolution about z, whose profile has rows (radius, z); `scale` stretches it along x and y."""
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    x = profile[:, :1] * np.cos(turn) * scale[0]
    y = profile[:, :1] * np.sin(turn) * scale[1]
    return _grid(np.stack([x, y, np.repeat(profile[:, 1:], sides, 1)], -1), closed=True)


def _box(size: tuple[float, float, float], power: float = 6.0, steps: int = 10) -> Mesh:
    """A rounded box (superellipsoid) of a total size (x, y, z); larger powers have sharper edges."""
    lat, lon = np.linspace(-np.pi / 2, np.pi / 2, steps), np.linspace(-np.pi, np.pi, 2 * steps, endpoint=False)
    ray = np.stack(
        [
            np.cos(lat)[:, None] * np.cos(lon),
            np.cos(lat)[:, None] * np.sin(lon),
            np.repeat(np.sin(lat)[:, None], len(lon), 1),
        ],
        -1,
    )
    warped = np.sign(ray) * np.abs(ray) ** 0.5
    far = (np.abs(warped) ** power).sum(-1, keepdims=True) ** (1 / power)
    vertices, faces, _ = _grid(warped / far * np.array(size) / 2, closed=True)
    return vertices, faces, vertices[:, [0, 2]]


def _moved(mesh: Mesh, move: np.ndarray, axes: np.ndarray | None = None) -> Mesh:
    """The mesh rotated by `axes` (rows are the images of x, y and z), then moved."""
    vertices = mesh[0] if axes is None else mesh[0] @ axes
    return vertices + move, mesh[1], mesh[2]


def _joined(meshes: list[Mesh]) -> Mesh:
    """Several meshes as one."""
    starts = np.cumsum([0] + [len(mesh[0]) for mesh in meshes])
    faces = np.concatenate([mesh[1] + start for mesh, start in zip(meshes, starts[:-1], strict=True)])
    return np.concatenate([mesh[0] for mesh in meshes]), faces, np.concatenate([mesh[2] for mesh in meshes])


def _loop(centre: tuple[float, float], half: tuple[float, float], power: float, tilt: float) -> np.ndarray:
    """A rim (n, 3) of glasses in front of an eye: |x/a|^power + |z/b|^power = 1; `tilt` raises its outer end."""
    turn = np.linspace(0, 2 * np.pi, 29)
    c, s = np.cos(turn), np.sin(turn)
    x = centre[0] + half[0] * np.sign(c) * np.abs(c) ** (2 / power)
    z = centre[1] + half[1] * np.sign(s) * np.abs(s) ** (2 / power) + tilt * np.clip(x - centre[0], 0, 1)
    return np.stack([x, -0.1565 + 5.5 * x**2, z], 1)


def _glasses(thing: Thing) -> list[Piece]:
    power, half, tilt = [(2.0, (0.0215, 0.0205), 0.0), (4.5, (0.0245, 0.0165), 0.05), (2.6, (0.0255, 0.018), 0.3)][
        min(int(thing.shape * 3), 2)
    ]
    half = (half[0] * thing.size, half[1] * thing.size)
    dark = thing.kind == "sunglasses"
    thick = 0.0009 + 0.0012 * (thing.shape * 7 % 1)
    rim = _loop((0.0325, 0.7255), half, power, tilt)
    outer = rim[:, 0].max()
    arm = np.array([[outer, -0.1565 + 5.5 * outer**2, 0.731], [0.073, -0.11, 0.735], [0.08, -0.04, 0.737]])
    bow = np.array([[x, -0.1565 - 0.003 * (1 - (x / 0.012) ** 2), 0.7315] for x in np.linspace(-0.012, 0.012, 5)])
    tubes, lenses = [_tube(bow, thick)], []
    for side in (1.0, -1.0):
        tubes += [_tube(rim * [side, 1, 1], thick), _tube(arm * [side, 1, 1], thick)]
        middle = rim.mean(0) * [side, 1, 1]
        lenses.append(_grid(np.stack([middle + (rim * [side, 1, 1] - middle) * s for s in (0.01, 0.5, 1.0)])))
    frame = _joined(tubes)
    pieces = [Piece(frame[0], frame[1], "glasses", None, HEAD_PART, thing.cloth, frame[2], (0.35, 30.0))]
    if dark:
        lens = _joined(lenses)
        pieces.append(Piece(lens[0], lens[1], "glasses", None, HEAD_PART, thing.trim, lens[2], (1.2, 60.0)))
    return pieces


def _dome(low: float, thick: float, tall: float, lean: float = 0.25) -> Mesh:
    """The crown of a hat: the upper part of an ellipsoid over the skull.

    Args:
        low: template height of its lower edge.
        thick: distance from the skull in metres.
        tall: additional height in metres.
        lean: slope of the lower edge towards the back.
    """
    lat, lon = np.linspace(0.0, np.pi / 2, 9), np.linspace(-np.pi, np.pi, 28, endpoint=False)
    x, y = 0.077 + thick, 0.1 + thick
    ring = np.cos(lat)[:, None] ** 0.62
    points = np.stack(
        [
            x * ring * np.sin(lon),
            SKULL[1] - y * ring * np.cos(lon),
            np.repeat(low + (SKULL[2] + 0.098 + tall - low) * np.sin(lat)[:, None], len(lon), 1),
        ],
        -1,
    )
    points[..., 2] -= lean * np.clip(points[..., 1] - SKULL[1] + 0.1, 0, 1) * (1 - np.sin(lat)[:, None])
    return _grid(points, closed=True)


def _hat(thing: Thing) -> list[Piece]:
    def piece(mesh: Mesh, cloth: Material) -> Piece:
        return Piece(mesh[0], mesh[1], "head", None, HEAD_PART, cloth, mesh[2])

    if thing.kind == "beanie":
        crown = _dome(0.775, 0.016, 0.012 + 0.03 * thing.shape, 0.2)
        fold = _dome(0.772, 0.0225, 0.0, 0.2)
        rows = fold[0].reshape(9, -1, 3)[:3].copy()
        rows[:, :, 2] = rows[0, :, 2] + np.array([0, 0.5, 1])[:, None] * 0.035
        pieces = [piece(crown, thing.cloth), piece(_grid(rows), thing.cloth)]
        if thing.shape > 0.75:
            ball = _box((0.045, 0.045, 0.045), 2.0, 8)
            pieces.append(piece(_moved(ball, np.array([0, SKULL[1], 0.9])), thing.trim))
        return pieces
    crown = _dome(0.785, 0.015, 0.018, 0.12)
    if thing.kind == "cap":
        lon, reach = np.linspace(-1.05, 1.05, 15), np.linspace(0, 1, 5)[:, None]
        out = 0.085 * np.cos(lon * 1.42).clip(0) ** 0.6 * reach
        x = 0.094 * np.sin(lon) * (1 + 0.04 * reach)
        y = SKULL[1] - 0.114 * np.cos(lon) - out
        z = 0.791 - 0.3 * out + 0.004 * np.cos(lon * 2) - 1.1 * x**2
        visor = _grid(np.stack([x, y, z], -1))
        turn = np.array([-1, -1, 1.0]) if thing.shape > 0.88 else np.ones(3)  # some caps are worn backwards
        axis = np.array([0, SKULL[1], 0])
        visor = ((visor[0] - axis) * turn + axis, visor[1], visor[2])
        return [piece(crown, thing.cloth), piece(visor, thing.trim)]
    wide = 0.035 + 0.04 * thing.shape  # a brimmed hat
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    reach = np.linspace(0, 1, 5)[:, None]
    x, y = (0.091 + wide * reach) * np.sin(turn), SKULL[1] - (0.114 + wide * reach) * np.cos(turn)
    z = 0.79 + 0.014 * reach**2 * np.cos(2 * turn) - 0.012 * reach - 0.12 * np.clip(y - SKULL[1], 0, 1)
    band = _dome(0.787, 0.0185, 0.0, 0.12)
    rows = band[0].reshape(9, -1, 3)[:3].copy()
    rows[:, :, 2] = rows[0, :, 2] + np.array([0, 0.5, 1])[:, None] * 0.022
    tall = _dome(0.785, 0.016, 0.03, 0.12)
    return [
        piece(tall, thing.cloth),
        piece(_grid(np.stack([x, y, z], -1), closed=True), thing.cloth),
        piece(_grid(rows), thing.trim),
    ]


def _scarf(thing: Thing) -> list[Piece]:
    turn = np.linspace(0, 4 * np.pi, 44)
    wave = 0.006 * np.sin(5 * turn + 9 * thing.shape)
    radius = 0.083 + 0.012 * np.sin(turn / 2) + wave
    loops = np.stack([radius * np.sin(turn), -0.025 - 1.12 * radius * np.cos(turn), 0.578 + 0.016 * turn / 6], 1)
    loops[:, 2] += 0.02 * np.cos(turn)  # lower at the nape than at the throat
    loops[:, 2] -= 0.028 * (loops[:, 1] < -0.06)
    meshes = [_tube(loops, 0.03, 8)]
    for side, length in ((1.0, 0.2), (-1.0, 0.28)):
        v = np.linspace(0, 1, 8)
        end = np.stack([side * (0.03 + 0.025 * v), -0.135 - 0.055 * np.minimum(2 * v, 1), 0.56 - length * v], 1)
        meshes.append(_tube(end, 0.035, 8, 0.35))
    mesh = _joined(meshes)
    return [Piece(mesh[0], mesh[1], "chest", None, TORSO_PART, thing.cloth, mesh[2])]


def _backpack(thing: Thing) -> list[Piece]:
    s = thing.size
    pack = _moved(_box((0.27 * s, 0.14 * s, 0.38 * s), 5.0, 12), np.array([0, 0.15, 0.37]))
    pocket = _moved(_box((0.2 * s, 0.06 * s, 0.16 * s), 5.0, 10), np.array([0, 0.15 + 0.07 * s, 0.29]))
    return [
        Piece(m[0], m[1], "chest", None, NO_PART, cloth, m[2], (0.03, 12.0))
        for m, cloth in ((pack, thing.cloth), (pocket, thing.trim))
    ]


def _shoulder_bag(thing: Thing) -> list[Piece]:
    mesh = _moved(
        _box((0.075, 0.23 * thing.size, 0.18 * thing.size), 5.0, 10), np.array([thing.side * 0.22, 0.045, 0.02])
    )
    flap = _moved(
        _box((0.085, 0.235 * thing.size, 0.09 * thing.size), 5.0, 10),
        np.array([thing.side * 0.22, 0.045, 0.02 + 0.048 * thing.size]),
    )
    return [
        Piece(m[0], m[1], "hips", None, NO_PART, cloth, m[0][:, [1, 2]], (0.06, 14.0))
        for m, cloth in ((mesh, thing.cloth), (flap, thing.trim))
    ]


def _palm(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a palm on the template, and axes in rows: out of the palm, to the fingers, to the thumb."""
    wrist, index, little = (
        np.array([0.431, -0.176, 0.245]),
        np.array([0.45, -0.264, 0.203]),
        np.array([0.475, -0.212, 0.176]),
    )
    fingers = (index + little) / 2 - wrist
    fingers /= np.linalg.norm(fingers)
    thumb = index - little
    thumb -= fingers * (thumb @ fingers)
    thumb /= np.linalg.norm(thumb)
    out = np.cross(thumb, fingers)
    out *= -np.sign(out[0])  # the palms face each other
    mirror = np.array([side, 1, 1])
    return (0.25 * wrist + 0.75 * (index + little) / 2) * mirror, np.stack([out, fingers, thumb]) * mirror


def _held(thing: Thing) -> list[Piece]:
    palm, axes = _palm(thing.side)
    frame = "hand.L" if thing.side > 0 else "hand.R"

    def rigid(mesh: Mesh, cloth: Material, gloss: tuple[float, float], off: tuple[float, float, float]) -> Piece:
        placed = _moved(mesh, palm + np.array(off) @ axes, axes)
        return Piece(placed[0], placed[1], frame, None, NO_PART, cloth, mesh[2], gloss)

    def hanging(mesh: Mesh, cloth: Material, gloss: tuple[float, float], off: tuple[float, float, float]) -> Piece:
        return Piece(mesh[0], mesh[1], frame, palm + np.array(off) @ axes, NO_PART, cloth, mesh[2], gloss)

    if thing.kind == "phone":
        screen = _box((0.002, 0.066, 0.138), 12.0, 8)
        return [
            rigid(_box((0.009, 0.074, 0.15), 10.0, 8), thing.cloth, (0.2, 30.0), (0.022, 0.02, 0.03)),
            rigid(screen, thing.trim, (0.6, 80.0), (0.028, 0.02, 0.03)),
        ]
    if thing.kind == "book":
        cover = _box((0.03, 0.15, 0.21), 14.0, 8)
        pages = _box((0.024, 0.152, 0.2), 14.0, 8)
        return [
            rigid(cover, thing.cloth, (0.05, 20.0), (0.03, 0.03, 0.0)),
            rigid(pages, thing.trim, (0.0, 1.0), (0.03, 0.032, 0.0)),
        ]
    if thing.kind == "cup":
        body = _lathe(np.array([(0.001, -0.055), (0.029, -0.055), (0.039, 0.055)]))
        lid = _lathe(np.array([(0.041, 0.052), (0.041, 0.06), (0.036, 0.066), (0.001, 0.066)]))
        sleeve = _lathe(np.array([(0.0325, -0.03), (0.0395, 0.03)]))
        return [
            hanging(body, thing.trim, (0.05, 20.0), (0.042, 0.015, 0.02)),
            hanging(sleeve, thing.cloth, (0.0, 1.0), (0.042, 0.015, 0.02)),
            hanging(lid, thing.cloth, (0.1, 30.0), (0.042, 0.015, 0.02)),
        ]
    if thing.kind == "bottle":
        shape = [(0.001, -0.11), (0.033, -0.11), (0.033, 0.05), (0.028, 0.075), (0.014, 0.09)]
        top = [(0.0155, 0.088), (0.0155, 0.108), (0.001, 0.108)]
        return [
            hanging(_lathe(np.array(shape)), thing.cloth, (0.3, 30.0), (0.036, 0.015, 0.02)),
            hanging(_lathe(np.array(top)), thing.trim, (0.1, 30.0), (0.036, 0.015, 0.02)),
        ]
    if thing.kind == "umbrella":
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        z = np.linspace(-0.1, -0.68, 7)
        radius = np.interp(z, [-0.68, -0.6, -0.14, -0.1], [0.006, 0.018, 0.033, 0.012])
        ripple = radius[:, None] * (1 + 0.12 * np.cos(6 * turn + 4 * z[:, None]))
        cloth = _grid(np.stack([ripple * np.cos(turn), ripple * np.sin(turn), np.repeat(z[:, None], 24, 1)], -1), True)
        hook = np.linspace(0, np.pi, 8)
        stick = np.concatenate(
            [
                np.array([[0, 0, -0.74], [0, 0, 0.03]]),
                np.stack([0 * hook, 0.028 - 0.028 * np.cos(hook), 0.03 + 0.028 * np.sin(hook)], 1)[1:],
            ]
        )
        return [
            hanging(cloth, thing.cloth, (0.05, 12.0), (0.025, 0.02, 0.0)),
            hanging(_tube(stick, 0.006), thing.trim, (0.2, 30.0), (0.025, 0.02, 0.0)),
        ]
    wide, tall, deep = (0.27, 0.2, 0.11) if thing.kind == "handbag" else (0.3, 0.34, 0.11)  # a bag
    drop = 0.13 if thing.kind == "handbag" else 0.16
    bag = _moved(_box((deep, wide * thing.size, tall * thing.size), 7.0, 11), np.array([0, 0, -drop - tall / 2]))
    turn = np.linspace(0, np.pi, 11)
    handle = np.stack([0 * turn, 0.075 * np.cos(turn), -drop - 0.02 + (drop + 0.02) * np.sin(turn) ** 0.6], 1)
    handles = _joined([_tube(handle + np.array([x, 0, 0]), 0.006) for x in (0.025, -0.025)])
    return [
        hanging((bag[0], bag[1], bag[0][:, [1, 2]]), thing.cloth, (0.06, 14.0), (0.022, 0.02, 0.0)),
        hanging(handles, thing.trim, (0.05, 20.0), (0.022, 0.02, 0.0)),
    ]


def _earrings(thing: Thing) -> list[Piece]:
    if thing.shape < 0.5:
        drop = _box((0.009, 0.009, 0.011), 2.0, 5)
    else:
        turn = np.linspace(0, 2 * np.pi, 17)
        drop = _tube(np.stack([0 * turn, 0.013 * np.sin(turn), 0.013 * np.cos(turn) - 0.012], 1), 0.0017)
    mesh = _joined([_moved(drop, np.array([side * 0.0815, -0.045, 0.693])) for side in (1.0, -1.0)])
    return [Piece(mesh[0], mesh[1], "glasses", None, HEAD_PART, thing.cloth, mesh[2], (0.8, 40.0))]


def build(thing: Thing) -> list[Piece]:
    """The meshes of an accessory; straps are shells (see `clothing`)."""
    if thing.kind in ("glasses", "sunglasses"):
        return _glasses(thing)
    makers = {"scarf": _scarf, "backpack": _backpack, "shoulder bag": _shoulder_bag, "earrings": _earrings}
    if thing.kind in makers:
        return makers[thing.kind](thing)
    return _hat(thing) if thing.slot == "hat" else _held(thing)


def hood(cloth: Material) -> Piece:
    """A hood that hangs down behind the neck."""
    turn = np.linspace(-2.5, 2.5, 22)
    thick = 0.018 + 0.026 * np.cos(turn / 2) ** 2
    radius = 0.092
    path = np.stack([radius * np.sin(turn), -0.015 + 0.085 * np.cos(turn), 0.575 - 0.02 * np.cos(turn)], 1)
    mesh = _tube(path, thick, 9)
    return Piece(mesh[0], mesh[1], "chest", None, TORSO_PART, cloth, mesh[2])


def soles(outline: np.ndarray, cloth: Material, thick: float, heel: float) -> list[Piece]:
    """The soles of both shoes.

    Args:
        outline: (n, 3), points around the left sole on the template, in order.
        cloth: material.
        thick: thickness in metres.
        heel: additional thickness of the heel in metres.
    """
    middle = outline.mean(0)
    back = np.clip((outline[:, 1] - middle[1] - 0.01) / 0.09, 0, 1)
    grown = (outline - middle) * [1.09, 1.04, 1] + middle
    slope = np.where(back > 0.25, 1.0, 0.0)
    levels = [grown * [1, 1, 0] + np.array([[0, 0, 1]]) * z for z in (-0.803, -0.812, -0.813 - thick)]
    levels[2] = levels[2] - np.stack([0 * slope, 0 * slope, heel * slope], 1)
    last = np.broadcast_to(levels[2].mean(0) * [1, 1, 0] + [0, 0, -0.813 - thick - 0.3 * heel], levels[2].shape)
    mesh = _grid(np.stack([levels[0] * 1.0, *levels[1:], 0.02 * levels[2] + 0.98 * last]), closed=True)
    pieces = []
    for side, frame in ((1.0, "foot.L"), (-1.0, "foot.R")):
        pieces.append(Piece(mesh[0] * [side, 1, 1], mesh[1], frame, None, FEET_PART, cloth, mesh[2], (0.05, 12.0)))
    return pieces
