"""Camera, light, sky and place of a picture. Lengths are in metres; the person stands at the origin, on z = 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffbody_ref.data.synthetic.solids import Solid
from diffbody_ref.data.synthetic.surfaces import Surface
from diffbody_ref.data.synthetic.textures import noise
from diffbody_ref.ops import keypoints as kp


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: pixel = focal · (x/z, y/z) + centre, with pixel centres at integers.

    Attributes:
        position: (3,), metres.
        axes: (3, 3), unit vectors in rows: right, down, forward.
        focal: focal length in pixels.
        centre: (2,), principal point in pixels.
    """

    position: np.ndarray
    axes: np.ndarray
    focal: float
    centre: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project world points (..., 3) to pixels (..., 2)."""
        q = (points - self.position) @ self.axes.T
        return q[..., :2] / np.maximum(q[..., 2:], 1e-6) * self.focal + self.centre

    def rays(self, height: int, width: int, samples: int) -> np.ndarray:
        """Unit directions of rays, float32 (height·samples, width·samples, 3): a regular grid of samples² per pixel."""
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

    @property
    def heading(self) -> float:
        """Direction of the view on the ground in radians, from x towards y."""
        return float(np.arctan2(self.axes[2, 1], self.axes[2, 0]))


@dataclass(frozen=True)
class Light:
    """The light of a place. Colours are linear RGB, (3,).

    Attributes:
        direction: (3,), unit vector towards the key light.
        spread: half angle of the key light's cone in radians.
        key: colour of the key light.
        sky: ambient light from straight above; light from between is graded.
        ground: ambient light from straight below.
        fill: colour of a second, broad source: a window, a softbox, a bright wall.
        fill_direction: (3,), unit vector towards the broad source.
        reach: metres within which things dim or tint the ambient light.
    """

    direction: np.ndarray
    spread: float
    key: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    fill: np.ndarray
    fill_direction: np.ndarray
    reach: float


@dataclass(frozen=True)
class Sky:
    """The sky, which rays see that hit nothing, and which shiny things reflect.

    Attributes:
        zenith: (3,), linear RGB straight above.
        horizon: (3,), linear RGB at the horizon.
        clouds: share of the sky covered by clouds, 0 to 1.
        hills: (K, 3), linear RGB of ranges of hills from far to near; K may be 0. Their shape is noise.
        seed: seed that shifts clouds and hills.
    """

    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    hills: np.ndarray
    seed: int

    def colour(self, rays: np.ndarray) -> np.ndarray:
        """The colour in unit directions (M, 3): linear RGB, float32 (M, 3)."""
        up = np.clip(rays[:, 2], 0, 1)
        colour = self.horizon + (self.zenith - self.horizon) * (np.sqrt(up) * 1.15).clip(0, 1)[:, None]
        if self.clouds:
            # A flat layer of clouds in perspective.
            x, y = (rays[:, i] / (up + 0.12) for i in range(2))
            cloud = noise(2, 0.09 * x + self.seed * 0.17, 0.09 * y) + 0.3 * noise(1, 0.3 * x, 0.3 * y + self.seed * 0.3)
            cover = np.clip(0.6 * cloud + 2.2 * self.clouds - 1.1, 0, 1)[:, None]
            white = self.horizon.mean() * (1.15 - 0.35 * np.clip(0.5 * cloud + 0.5, 0, 1))[:, None]
            colour = colour + (white - colour) * cover * 0.9
        for i, hill in enumerate(self.hills):
            turn = np.arctan2(rays[:, 1], rays[:, 0]) / (2 * np.pi)
            ridge = 0.045 - 0.012 * i + 0.022 * noise(3, turn * 2 + 0.37 * i + self.seed * 0.1, 0 * turn)
            ridge = ridge + 0.002 * noise(1, turn * 3 + 0.1 * self.seed, 0 * turn + 0.2)
            shade = 1 + 0.12 * noise(2, turn * 4, rays[:, 2] * 3 + 0.2 * i)
            colour = np.where((rays[:, 2] < ridge)[:, None], hill * shade[:, None], colour)
        return np.maximum(colour, 0).astype(np.float32)


@dataclass(frozen=True)
class Place:
    """The surroundings of a person.

    Attributes:
        words: words for the caption, such as "in a living room".
        solids: everything except the floor, which is z = 0.
        floor: surface of the floor.
        ceiling: height of the ceiling in metres; 0 is open sky.
        sky: the sky; indoors it is what windows and a shiny floor reflect.
        light: the light.
    """

    words: str
    solids: list[Solid]
    floor: Surface
    ceiling: float
    sky: Sky
    light: Light


CROPS = ("full body", "three-quarter view", "upper body", "head and shoulders")
_LOWEST = {"three-quarter view": "knee", "upper body": "hip", "head and shoulders": "shoulder"}


def _lower_edge(keypoints: np.ndarray, top: float, crop: str, rng: np.random.Generator) -> float:
    """The height in metres at which a crop's lower edge cuts the person."""
    if crop == "full body":
        return 0.0
    joints = keypoints[[kp.INDEX[f"{side}_{_LOWEST[crop]}"] for side in ("left", "right")], 2]
    down = {"three-quarter view": (-0.16, 0.12), "upper body": (-0.14, 0.16), "head and shoulders": (-0.3, -0.1)}[crop]
    return float(np.clip(joints.min() + rng.uniform(*down), 0.02, top - 0.28))


def random_camera(
    rng: np.random.Generator,
    vertices: np.ndarray,
    trunk: np.ndarray,
    keypoints: np.ndarray,
    height: int,
    width: int,
    support: str = "",
) -> tuple[Camera, str, str]:
    """Draw a camera that frames a posed person.

    Distances are those of a photographer, from 0.9 m for a face to 7 m; the person is off the centre and may be cut a
    little.

    Args:
        rng: source of randomness.
        vertices: (N, 3), vertices of the dressed mesh.
        trunk: bool (N,), vertices that do not belong to the arms.
        keypoints: (133, 3), finite.
        height: height of the picture in pixels.
        width: width of the picture in pixels.
        support: the support that the pose needs; a wall or a rail must not be between person and camera.

    Returns:
        The camera, the side that it sees ("from the front"), and the crop (one of `CROPS`).
    """
    yaw = rng.normal(0, 0.5) if rng.random() < 0.68 else rng.uniform(-np.pi, np.pi)
    if support == "wall":
        yaw = float(np.clip(yaw, -1.2, 1.2))
    crop = str(rng.choice(CROPS, p=[0.48, 0.2, 0.2, 0.12]))
    top = float(vertices[:, 2].max())
    low = _lower_edge(keypoints, top, crop, rng)
    near, far = {CROPS[0]: (2.4, 7.0), CROPS[1]: (1.8, 4.5), CROPS[2]: (1.3, 3.5), CROPS[3]: (0.9, 2.4)}[crop]
    distance = near * (far / near) ** rng.random()
    eye_height = rng.normal(1.45, 0.2) if rng.random() < 0.75 else rng.uniform(0.35, 2.3)
    part = vertices[(vertices[:, 2] > low) & (trunk | (crop == CROPS[0]))]
    target = np.array([*np.median(part[:, :2], 0), (low + top) / 2])
    eye = target + distance * np.array([np.sin(yaw), -np.cos(yaw), 0])
    eye[2] = np.clip(eye_height, target[2] - 0.45 * distance, target[2] + 0.45 * distance)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    roll = rng.normal(0, 0.012)
    right = right * np.cos(roll) + np.cross(forward, right) * np.sin(roll)
    camera = Camera(eye, np.stack([right, np.cross(forward, right), forward]), 1.0, np.zeros(2))
    flat = camera.project(part)
    first, last = flat.min(0), flat.max(0)
    if crop == CROPS[0]:
        focal = min(
            rng.uniform(0.8, 0.97) * height / (last[1] - first[1]), rng.uniform(0.8, 1.1) * width / (last[0] - first[0])
        )
    else:  # framed without the arms, which may leave the frame
        focal = min(
            rng.uniform(0.84, 0.97) * height / (last[1] - first[1]),
            rng.uniform(0.8, 1.2) * width / (last[0] - first[0]),
        )
        last[1] = first[1] + rng.uniform(0.86, 0.96) * height / focal  # little headroom, whatever the width requires
    slack = np.maximum(np.array([width, height]) - (last - first) * focal, 0.04 * width)
    shift = rng.uniform(-0.35, 0.35, 2) * slack
    if crop != CROPS[0]:  # the cut is the picture's lower edge
        shift[1] = slack[1] / 2
    centre = np.array([width - 1, height - 1]) / 2 - (first + last) / 2 * focal + shift
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
    return Camera(eye, camera.axes, float(focal), centre), seen, crop


def key_direction(rng: np.random.Generator, camera: Camera, turn: float, rise: tuple[float, float]) -> np.ndarray:
    """Draw a direction towards a light, a unit vector (3,).

    Args:
        rng: source of randomness.
        camera: the camera.
        turn: standard deviation in radians of the angle on the ground, from the direction towards the camera.
        rise: range of the angle above the ground in radians.
    """
    around, up = camera.heading + np.pi + rng.normal(0, turn), rng.uniform(*rise)
    return np.array([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)])


def light(
    direction: np.ndarray,
    spread: float,
    key: np.ndarray,
    sky: np.ndarray,
    ground: np.ndarray,
    fill: np.ndarray,
    fill_direction: np.ndarray,
    reach: float,
) -> Light:
    """A `Light` whose arrays are float32; see there for the arguments."""
    towards, key, sky, ground, fill, aside = (
        np.asarray(x, np.float32) for x in (direction, key, sky, ground, fill, fill_direction)
    )
    return Light(towards, float(spread), key, sky, ground, fill, aside, float(reach))
