"""Where a picture is taken: camera, light and background. Metres; the person stands at the origin on z = 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffbody_ref.data.synthetic.textures import PALETTE, Material, albedo, linear, material, named_colour, noise


@dataclass(frozen=True)
class Camera:
    """A pinhole: pixel = focal · (x/z, y/z) + centre, pixel centres at integers. `axes` rows: right, down, forward."""

    position: np.ndarray
    axes: np.ndarray
    focal: float
    centre: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) to pixels (..., 2)."""
        q = (points - self.position) @ self.axes.T
        return q[..., :2] / np.maximum(q[..., 2:], 1e-6) * self.focal + self.centre

    def rays(self, height: int, width: int, samples: int) -> np.ndarray:
        """Unit directions float32 (height·samples, width·samples, 3): a regular grid of samples² rays a pixel."""
        x = (np.arange(width * samples) + 0.5) / samples - 0.5
        y = (np.arange(height * samples) + 0.5) / samples - 0.5
        local = np.empty((len(y), len(x), 3), np.float32)
        local[..., 0], local[..., 1], local[..., 2] = (
            (x - self.centre[0]) / self.focal,
            ((y - self.centre[1]) / self.focal)[:, None],
            1,
        )
        local /= np.sqrt((local * local).sum(-1, keepdims=True))
        return local @ self.axes.astype(np.float32)


@dataclass(frozen=True)
class Light:
    """Key light towards `direction` (unit) in a cone of `spread` radians, and ambient of sky and ground. Linear RGB."""

    direction: np.ndarray
    spread: float
    key: np.ndarray
    sky: np.ndarray
    ground: np.ndarray


@dataclass(frozen=True)
class Board:
    """An upright flat thing in the background, at `foot` (x, y, z) and facing `normal`.

    shape: "rectangle", or "leaves" for a ragged ellipse.
    """

    foot: np.ndarray
    normal: np.ndarray
    half_width: float
    height: float
    cloth: Material
    shape: str


@dataclass(frozen=True)
class Background:
    """A floor, a wall `distance` behind the person up to the height `top`, boards, and a sky (2, 3): zenith, horizon.

    `blur` is of the far background, in pixels of a picture of 256 lines.
    """

    words: str
    floor: Material
    wall: Material
    distance: float
    normal: np.ndarray
    top: float
    sky: np.ndarray
    clouds: float
    boards: tuple[Board, ...]
    blur: float


@dataclass(frozen=True)
class Backdrop:
    """What each ray meets: albedo (H, W, 3), not lit where `emits`; depth along the ray (inf: sky); normal."""

    colour: np.ndarray
    emits: np.ndarray
    depth: np.ndarray
    normal: np.ndarray


def random_camera(rng: np.random.Generator, vertices: np.ndarray, height: int, width: int) -> tuple[Camera, str, str]:
    """A camera that frames the posed vertices, with the side it sees ("from the front") and the crop ("full body").

    A quarter of the pictures are crops of the upper body; the person is off the centre and may be cut a little.
    """
    yaw = rng.normal(0, 0.55) if rng.random() < 0.62 else rng.uniform(-np.pi, np.pi)
    tall = vertices[:, 2].max()
    distance = float(rng.uniform(2.2, 5.5))
    eye = np.array(
        [np.sin(yaw) * distance, -np.cos(yaw) * distance, float(np.clip(rng.normal(0.75 * tall, 0.35), 0.25, 2.6))]
    )
    forward = np.array([0, 0, 0.52 * tall]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    roll = rng.normal(0, 0.015)
    right, down = right * np.cos(roll) + np.cross(forward, right) * np.sin(roll), np.cross(forward, right)
    down = np.cross(forward, right)
    camera = Camera(eye, np.stack([right, down, forward]), 1.0, np.zeros(2))
    flat = camera.project(vertices)
    low, high = flat.min(0), flat.max(0)
    crop = "full body"
    if rng.random() < 0.25:
        crop, cut = "upper body", rng.uniform(0.36, 0.64)
        part = flat[vertices[:, 2] > tall * (1 - cut)]
        low, high = part.min(0), part.max(0)
        focal = float(rng.uniform(0.86, 1.05) * height / (high[1] - low[1]))
    else:
        focal = float(
            min(
                rng.uniform(0.78, 0.99) * height / (high[1] - low[1]),
                rng.uniform(0.8, 1.15) * width / (high[0] - low[0]),
            )
        )
    slack = np.maximum(np.array([width, height]) - (high - low) * focal, 0.04 * width)
    shift = rng.uniform(-0.35, 0.35, 2) * slack
    centre = np.array([width - 1, height - 1]) / 2 - (low + high) / 2 * focal + shift
    side = abs((yaw + np.pi) % (2 * np.pi) - np.pi)
    seen = (
        "from the front"
        if side < 0.6
        else "from behind"
        if side > 2.5
        else "from the side"
        if 1.1 < side < 2.0
        else "at an angle"
    )
    return Camera(eye, camera.axes, focal, centre), seen, crop


def random_light(rng: np.random.Generator, camera: Camera, outdoors: bool) -> Light:
    """Mostly from the camera's side, so that the person is lit."""
    toward = -camera.axes[2]
    turn = np.arctan2(toward[1], toward[0]) + rng.normal(0, 0.9)
    rise = rng.uniform(0.35, 1.25)
    direction = np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
    warmth = rng.uniform(-0.12, 0.2)
    key = np.array([1 + warmth, 1, 1 - warmth]) * rng.uniform(0.5, 2.6 if outdoors else 1.5)
    sky = np.array([1 - 0.12, 1, 1 + 0.14]) if outdoors else np.array([1 + 0.5 * warmth, 1, 1 - 0.5 * warmth])
    spread = rng.uniform(0.02, 0.1) if outdoors else rng.uniform(0.08, 0.35)
    sky, ground = sky * rng.uniform(0.45, 1.0), np.array([0.5, 0.46, 0.4]) * rng.uniform(0.4, 0.9)
    return Light(direction.astype(np.float32), float(spread), *(x.astype(np.float32) for x in (key, sky, ground)))


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> np.ndarray:
    return named_colour(rng, str(rng.choice(names)), 0.12)


def _board(rng: np.random.Generator, camera: Camera, reach: float, outdoors: bool) -> Board:
    ahead = camera.axes[2] * np.array([1, 1, 0])
    ahead /= np.linalg.norm(ahead)
    aside = np.array([-ahead[1], ahead[0], 0])
    depth = rng.uniform(0.7, reach)
    foot = ahead * depth + aside * rng.uniform(-1, 1) * (0.5 + 0.35 * (depth + 3))
    normal = -ahead + aside * rng.normal(0, 0.4)
    normal /= np.linalg.norm(normal)
    colours = [_pick(rng, tuple(PALETTE)) for _ in range(3)]
    pattern = str(
        rng.choice(["plain", "plain", "shelves", "checked", "striped", "planks", "facade", "gradient", "floral"])
    )
    if outdoors and rng.random() < 0.55:
        greens = [_pick(rng, ("green", "olive")) * s for s in (0.45, 1.3)]
        tall = rng.uniform(0.5, 2.8)
        foot = foot + np.array([0, 0, rng.uniform(0, 1.2)])
        return Board(foot, normal, rng.uniform(0.3, 1.2), tall, material(rng, "foliage", greens, 0.35, 0.1), "leaves")
    hung = rng.random() < 0.35
    foot = foot + np.array([0, 0, rng.uniform(0.7, 1.6) if hung else 0.0])
    size = (rng.uniform(0.12, 0.6), rng.uniform(0.2, 0.9)) if hung else (rng.uniform(0.05, 0.6), rng.uniform(0.3, 2.2))
    return Board(
        foot,
        normal,
        size[0],
        size[1],
        material(rng, pattern, colours, float(rng.uniform(0.08, 0.4)), 0.08),
        "rectangle",
    )


def random_background(rng: np.random.Generator, camera: Camera) -> tuple[Background, bool]:
    """A background and whether it is outdoors."""
    place = str(rng.choice(["room", "street", "nature", "studio", "library"], p=[0.32, 0.26, 0.24, 0.12, 0.06]))
    outdoors = place in ("street", "nature")
    ahead = np.arctan2(camera.axes[2][1], camera.axes[2][0]) + rng.normal(0, 0.35)
    normal = -np.array([np.cos(ahead), np.sin(ahead), 0.0])
    light, greys, woods = (
        ("white", "beige", "light grey", "light blue", "khaki"),
        ("grey", "light grey", "dark grey"),
        ("brown", "khaki", "orange"),
    )
    grain = float(rng.uniform(0.05, 0.2))
    distance, top, count = rng.uniform(0.6, 3.5), 99.0, int(rng.integers(0, 5))
    wall = material(
        rng,
        str(rng.choice(["mottled", "plain", "bricks", "pinstriped", "tiles", "planks", "floral"])),
        [_pick(rng, light), _pick(rng, light), _pick(rng, light)],
        float(rng.uniform(0.08, 0.5)),
        grain,
    )
    floor = material(
        rng,
        str(rng.choice(["planks", "tiles", "mottled", "checked"])),
        [_pick(rng, woods), _pick(rng, woods), _pick(rng, ("brown", "dark grey"))],
        float(rng.uniform(0.1, 0.5)),
        grain,
    )
    words = "in a room"
    if place == "street":
        distance, top, count = rng.uniform(3, 14), float(rng.choice([3.0, 6.0, 99.0])), int(rng.integers(0, 6))
        walls = ("beige", "brown", "grey", "light grey", "red", "khaki")
        wall = material(
            rng,
            str(rng.choice(["facade", "bricks", "facade"])),
            [_pick(rng, walls), _pick(rng, walls), _pick(rng, greys)],
            float(rng.uniform(1.2, 3.0)),
            grain,
        )
        if wall.pattern == "bricks":
            wall = material(rng, "bricks", [_pick(rng, walls), _pick(rng, walls), _pick(rng, greys)], 0.12, grain)
        floor = material(
            rng,
            str(rng.choice(["mottled", "tiles", "bricks"])),
            [_pick(rng, greys), _pick(rng, greys), _pick(rng, greys)],
            float(rng.uniform(0.2, 0.7)),
            0.2,
        )
        words = "on a street"
    elif place == "nature":
        distance, top, count = rng.uniform(4, 18), float(rng.uniform(1.5, 9)), int(rng.integers(2, 8))
        wall = material(
            rng, "foliage", [_pick(rng, ("green", "olive")) * 0.4, _pick(rng, ("green", "olive", "khaki"))], 1.0, 0.15
        )
        floor = material(
            rng,
            "foliage",
            [_pick(rng, ("green", "olive")) * 0.7, _pick(rng, ("green", "olive", "khaki", "brown"))],
            0.4,
            0.15,
        )
        words = "outdoors among trees"
    elif place == "studio":
        tone = _pick(rng, tuple(PALETTE))
        wall = material(
            rng,
            str(rng.choice(["gradient", "plain", "mottled"])),
            [tone, tone * rng.uniform(0.4, 0.9)],
            float(rng.uniform(0.3, 1.0)),
            0.02,
        )
        floor, count, words = (
            material(rng, "plain", [tone * rng.uniform(0.5, 1.0)], 1.0, 0.03),
            0,
            "in front of a plain backdrop",
        )
    elif place == "library":
        wall, words = (
            material(rng, "shelves", [_pick(rng, woods)], float(rng.uniform(0.25, 0.4)), 0.08),
            "in front of bookshelves",
        )
    boards = tuple(_board(rng, camera, distance + 0.5, outdoors) for _ in range(count))
    sky = (
        np.stack([linear(np.array((90, 140, 215))), linear(np.array((205, 222, 240)))]) * rng.uniform(0.9, 2.2)
        if rng.random() < 0.7
        else np.full((2, 3), rng.uniform(0.6, 1.6))
    )
    blur = float(rng.choice([0.0, rng.uniform(0.5, 2.5)]))
    return Background(
        words, floor, wall, float(distance), normal, top, sky, float(rng.uniform(0, 0.5)), boards, blur
    ), outdoors


def _upright(
    b: Board | Background, anchor: np.ndarray, camera: Camera, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth along the rays of an upright plane through `anchor`, and the place on it: sideways, and height z."""
    slope = rays @ b.normal.astype(np.float32)
    with np.errstate(divide="ignore"):
        depth = np.float32((anchor - camera.position) @ b.normal) / slope
    depth = np.where((depth > 0) & (depth < 200), depth, np.inf)
    reached = np.where(np.isfinite(depth), depth, 0)
    aside = np.array([-b.normal[1], b.normal[0], 0.0])
    u = reached * (rays @ aside.astype(np.float32)) + np.float32((camera.position - anchor) @ aside)
    return depth, u, reached * rays[..., 2] + np.float32(camera.position[2])


def backdrop(b: Background, camera: Camera, rays: np.ndarray) -> Backdrop:
    """The background that each ray (..., 3) meets."""
    up = np.clip(rays[..., 2], 0, 1)[..., None] ** np.float32(0.5)
    cloud = np.clip(noise(2, rays[..., 0] * 0.4, rays[..., 2] * 0.9 + rays[..., 1] * 0.4) - 0.3, 0, 1) * b.clouds
    colour = (b.sky[1] + (b.sky[0] - b.sky[1]) * up + cloud[..., None]).astype(np.float32)
    depth = np.full(rays.shape[:-1], np.inf, np.float32)
    normal = np.zeros_like(rays)

    def put(
        where: np.ndarray, new_depth: np.ndarray, m: Material, u: np.ndarray, v: np.ndarray, direction: np.ndarray
    ) -> None:
        where = where & (new_depth < depth)
        if where.any():
            colour[where] = albedo(m, u[where], v[where])
            depth[where] = new_depth[where]
            normal[where] = direction

    t, u, z = _upright(b, -b.normal * b.distance, camera, rays)
    put(
        (z > 0) & (z < b.top + (0.6 * noise(1, u * 0.05, 0 * u) if b.wall.pattern == "foliage" else 0)),
        t,
        b.wall,
        u,
        z,
        b.normal,
    )
    with np.errstate(divide="ignore"):
        t = -np.float32(camera.position[2]) / rays[..., 2]
    t = np.where((t > 0) & (t < 80), t, np.inf).astype(np.float32)
    reached = np.where(np.isfinite(t), t, 0)
    spot = [reached * rays[..., i] + np.float32(camera.position[i]) for i in range(2)]
    put(np.isfinite(t), t, b.floor, spot[0], spot[1], np.array([0, 0, 1.0]))
    for board in b.boards:
        t, u, z = _upright(board, board.foot, camera, rays)
        v = z - board.foot[2]
        inside = (np.abs(u) < board.half_width) & (v > 0) & (v < board.height) & (z > 0)
        if board.shape == "leaves":
            round_ = (u / board.half_width) ** 2 + (2 * v / board.height - 1) ** 2
            inside &= round_ + 0.3 * noise(1, u * 0.3 + board.cloth.offset[0], v * 0.3) < 0.85
        put(inside, t, board.cloth, u, v, board.normal)
    return Backdrop(colour, ~np.isfinite(depth), depth, normal)
