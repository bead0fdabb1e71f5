"""One picture of one synthetic person, with its labels, from the seed, the identity's number and the view's number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from diffbody_ref.data.synthetic import clothing as c
from diffbody_ref.data.synthetic.body import ARMS, FEET, HEAD, LEGS, TORSO, Posed, body_model
from diffbody_ref.data.synthetic.face import random_expression
from diffbody_ref.data.synthetic.paint import person_albedo
from diffbody_ref.data.synthetic.poses import random_pose
from diffbody_ref.data.synthetic.scene import (
    Backdrop,
    Background,
    Camera,
    Light,
    backdrop,
    random_background,
    random_camera,
    random_light,
)
from diffbody_ref.data.synthetic.tracing import Scene
from diffbody_ref.data.synthetic.wardrobe import Identity, random_identity
from diffbody_ref.ops import keypoints as kp
from diffbody_ref.ops.captions import Caption

SAMPLES = 2  # rays a pixel in each direction
_AO_REACH = 0.45


@dataclass(frozen=True)
class Picture:
    """A rendered person.

    Attributes:
        image: uint8 (H, W, 3) sRGB.
        parts: uint8 (H, W), labels of `diffbody_ref.ops.parts.PART_LABELS`.
        keypoints: float32 (133, 3): x, y in pixels (centres at integers), visibility 0, 1 or 2.
        box: float32 (4,): x0, y0, x1, y1 of the visible person.
        caption: one sentence.
    """

    image: np.ndarray
    parts: np.ndarray
    keypoints: np.ndarray
    box: np.ndarray
    caption: str


@dataclass(frozen=True)
class _Surface:
    """What the rays that hit the person found, M of them; `index` into the flattened samples."""

    index: np.ndarray
    depth: np.ndarray
    position: np.ndarray
    normal: np.ndarray
    colour: np.ndarray
    label: np.ndarray
    kind: np.ndarray


def generator(seed: int, *key: int) -> np.random.Generator:
    """A Philox generator that depends on nothing but its key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *key])))


def _surface(
    scene: Scene,
    mesh: c.Dressed,
    vertices: np.ndarray,
    normals: np.ndarray,
    who: Identity,
    camera: Camera,
    rays: np.ndarray,
) -> _Surface:
    pixels = np.rint(camera.project(vertices))
    low = np.maximum((pixels.min(0) - 1) * SAMPLES, 0).astype(int)
    high = ((pixels.max(0) + 2) * SAMPLES).astype(int)
    columns = np.arange(low[0], min(high[0], rays.shape[1]))
    index = (np.arange(low[1], min(high[1], rays.shape[0]))[:, None] * rays.shape[1] + columns).ravel()
    face, depth, weights = scene.trace(camera.position, rays.reshape(-1, 3)[index])
    hit = face >= 0
    index, face, depth, weights = index[hit], face[hit], depth[hit], weights[hit]
    corners = mesh.faces[face]

    def blend(rows: np.ndarray) -> np.ndarray:
        return np.einsum("mc,mcd->md", weights, rows[corners])

    direction = rays.reshape(-1, 3)[index]
    normal = blend(normals)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    normal *= np.where((normal * direction).sum(1) > 0.25, -1, 1)[:, None].astype(np.float32)  # the inside of cloth
    parts = blend(mesh.parts)
    colour = person_albedo(who, mesh, mesh.kind[face], blend(mesh.template), parts)
    position = camera.position.astype(np.float32) + direction * depth[:, None]
    label = np.where(parts.sum(1) > 0.5, parts.argmax(1), -1)  # what is carried is no part
    return _Surface(index, depth, position, normal, colour, label, mesh.kind[face])


def _visibility(
    scene: Scene, position: np.ndarray, normal: np.ndarray, light: Light, index: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shares in [0, 1] of the key light and of the ambient light that reach the samples (M,) at points (M, 3).

    The ambient light is the mean over the pixel's samples that were asked for it (it is smooth, and half as many do).
    """
    sub = (index // columns % SAMPLES) * SAMPLES + index % columns % SAMPLES
    shares = scene.light(position, normal, sub, SAMPLES**2, light.direction, light.spread, _AO_REACH)
    pixel = (index // columns // SAMPLES) * columns + index % columns // SAMPLES
    asked = shares[:, 1] >= 0
    count = np.bincount(pixel[asked], minlength=int(pixel.max(initial=0)) + 1)
    total = np.bincount(pixel[asked], shares[asked, 1], minlength=len(count))
    mean = np.where(count > 0, total / np.maximum(count, 1), 0.7).astype(np.float32)
    return shares[:, 0], 0.15 + 0.85 * mean[pixel]


def _shade(colour: np.ndarray, normal: np.ndarray, light: Light, key: np.ndarray, ambient: np.ndarray) -> np.ndarray:
    """Lambert under the key light and a hemisphere of ambient light: linear RGB (M, 3)."""
    facing = np.clip(normal @ light.direction, 0, 1) * key
    up = np.float32(0.5) + np.float32(0.5) * normal[:, 2:]
    dome = (light.ground + (light.sky - light.ground) * up) * ambient[:, None]
    return colour * (dome + light.key * facing[:, None])


def _sheen(surface: _Surface, gloss: np.ndarray, rays: np.ndarray, light: Light, key: np.ndarray) -> np.ndarray:
    """Soft highlights of skin, eyes, hair, shoes and accessories (Blinn); gloss as in `Dressed`."""
    strength, power = gloss[surface.kind].T
    half = light.direction - rays
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    shine = np.clip((surface.normal * half).sum(1), 0, 1) ** power * strength * key
    return shine[:, None] * light.key


def _lit_background(scene: Scene, b: Backdrop, light: Light, camera: Camera, rays: np.ndarray) -> np.ndarray:
    """Shaded background (H·W, 3); only points near the person get its shadows."""
    depth, normal, colour = b.depth.ravel(), b.normal.reshape(-1, 3), b.colour.reshape(-1, 3)
    key, ambient = np.ones(len(depth), np.float32), np.ones(len(depth), np.float32)
    position = (
        camera.position.astype(np.float32) + rays.reshape(-1, 3) * np.where(np.isfinite(depth), depth, 0)[:, None]
    )
    near = np.flatnonzero(np.isfinite(depth) & ((np.abs(position[:, 0]) < 2.2) & (np.abs(position[:, 1]) < 2.2)))
    if len(near):
        key[near], ambient[near] = _visibility(scene, position[near], normal[near], light, near, rays.shape[1])
    out = _shade(colour, normal, light, key, ambient)
    out[b.emits.ravel()] = colour[b.emits.ravel()] * light.sky.mean()
    return out


def _blurred(colour: np.ndarray, b: Backdrop, camera: Camera, blur: float, height: int) -> np.ndarray:
    """Out of focus behind the person: (H·W, 3)."""
    if blur == 0:
        return colour
    shape = (*b.depth.shape, 3)
    sigma = blur * SAMPLES * height / 256
    soft = gaussian_filter(colour.reshape(shape), (sigma, sigma, 0)).reshape(-1, 3)
    distance = float(np.hypot(*camera.position[:2]))
    weight = np.clip((np.minimum(b.depth, 1e3) - distance - 0.3) / 1.0, 0, 1).ravel()[:, None]
    return colour + (soft - colour) * weight.astype(np.float32)


def _develop(rng: np.random.Generator, colour: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Linear radiance (H, W, 3) to sRGB uint8: exposure for the person mostly, soft highlights, some contrast."""
    luminance = colour @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    level = 0.55 * luminance[person].mean() + 0.45 * np.median(luminance) if person.any() else luminance.mean()
    grey = colour @ np.full((3, 1), 1 / 3, np.float32)
    muted = grey + (colour - grey) * np.float32(rng.uniform(0.72, 0.95))  # albedos are purer than cameras' colours
    exposed = muted * np.float32(0.22 * np.exp(rng.normal(0.0, 0.3)) / max(float(level), 1e-4))
    exposed = np.where(exposed > 0.6, 0.6 + 0.4 * (1 - np.exp(-(exposed - 0.6) / 0.4)), exposed)
    tone = np.clip(exposed, 0, 1) ** np.float32(1 / 2.2)
    contrast = rng.uniform(0.0, 0.35)
    tone = tone + contrast * (tone * tone * (3 - 2 * tone) - tone)
    return np.rint(np.clip(tone, 0, 1) * 255).astype(np.uint8)


# How far behind the first surface (metres, of a body 1.7 m tall) a joint may lie and still be seen, and on which parts.
_DEPTHS = {"shoulder": 0.13, "elbow": 0.09, "wrist": 0.07, "hip": 0.17, "knee": 0.11, "ankle": 0.09}
_ON = {
    "shoulder": (TORSO, ARMS, HEAD),
    "elbow": (ARMS,),
    "wrist": (ARMS,),
    "hip": (TORSO, LEGS),
    "knee": (LEGS,),
    "ankle": (LEGS, FEET),
}


def _seen(name: str) -> tuple[float, tuple[int, ...]]:
    joint = name.partition("_")[2]
    if joint in _DEPTHS:
        return _DEPTHS[joint], _ON[joint]
    if "toe" in joint or joint == "heel":
        return 0.07, (FEET,)
    if joint.startswith(("hand", "thumb", "forefinger", "middle", "ring", "pinky")):
        return 0.035, (ARMS,)
    return (0.05 if joint == "ear" else 0.025), (HEAD,)


def _keypoints(posed: Posed, camera: Camera, scene: Scene, mesh: c.Dressed, height: int, width: int) -> np.ndarray:
    """(133, 3): pixels and visibility, 2 only where a ray from the camera meets the point's own part near the point."""
    there = np.isfinite(posed.keypoints[:, 0])
    points = np.where(there[:, None], posed.keypoints, 0)
    pixel = camera.project(points)
    ray = points - camera.position
    depth = np.linalg.norm(ray, axis=1)
    face, hit, weights = scene.trace(camera.position, ray / depth[:, None])
    parts = np.einsum("kc,kcp->kp", weights, mesh.parts[mesh.faces[np.maximum(face, 0)]])
    label = np.where(parts.sum(1) > 0.5, parts.argmax(1), -1)
    scale = np.clip(np.ptp(posed.vertices[:, 2]) / 1.7, 0.5, 1.2)
    rules = [_seen(name) for name in kp.NAMES]
    near = (face >= 0) & (hit > depth - scale * np.array([rule[0] for rule in rules]))
    own = np.array([label[i] in rule[1] for i, rule in enumerate(rules)])
    framed = (pixel >= -0.5).all(1) & (pixel < np.array([width, height]) - 0.5).all(1)
    visibility = np.where(there, np.where(near & own & framed, 2, 1), 0)
    out = np.concatenate([pixel, visibility[:, None]], 1).astype(np.float32)
    out[~there] = 0
    return out


def _part_map(surface: _Surface, shape: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W): the label most of a pixel's samples have, the background at a tie."""
    fine = np.zeros(shape, np.uint8)
    fine.ravel()[surface.index] = surface.label + 1
    grid = [fine[i::SAMPLES, j::SAMPLES] for i in range(SAMPLES) for j in range(SAMPLES)]
    counts = np.stack([sum((cell == label).astype(np.int8) for cell in grid) for label in range(6)])
    return counts.argmax(0).astype(np.uint8)


def _caption(who: Identity, keypoints: np.ndarray, pose: str, seen: str, crop: str, background: Background) -> str:
    shown = keypoints[:, 2] == 2
    one = who.lower.words == ""
    hands = who.hand_words
    if not hands and shown[kp.LEFT_HAND].sum() > 8 and shown[kp.RIGHT_HAND].sum() > 8:
        hands = "hands visible"
    view = f"{pose}, seen {seen}"
    return Caption(
        look=who.look,
        hair=who.hair.words,
        face=who.face_words(seen != "from behind"),
        upper=who.upper_words,
        lower="" if one or not (crop == "full body" or shown[[13, 14]].any()) else who.lower.words,
        hands=hands,
        shoes=who.shoes.words if shown[kp.FEET].any() else "",
        pose=view if crop == "full body" else f"upper body, {view}",
        background=background.words,
    ).sentence()


@lru_cache(maxsize=1)
def _dressed(seed: int, identity: int) -> tuple[Identity, c.Dressed]:
    """An identity and its mesh; views of the same one follow each other."""
    who = random_identity(generator(seed, identity))
    return who, c.dress(body_model(), who)


def render(seed: int, identity: int, view: int, height: int = 256, width: int = 128) -> Picture:
    """Render one picture; the same arguments give the same picture on one machine.

    Raises:
        ValueError: a size below 16 pixels.
    """
    if min(height, width) < 16:
        raise ValueError(f"height × width is {height}×{width}; both must be at least 16")
    who, mesh = _dressed(seed, identity)
    rng = generator(seed, identity, view + 1)
    rotations, pose_words = random_pose(rng)
    posed = body_model().pose(who.phenotype, c.wear(who, rotations), who.features, random_expression(rng))
    vertices, normals = c.drape(mesh, posed.vertices, int(rng.integers(1 << 20)))
    lift = np.float32(vertices[:, 2].min())  # soles stand on the ground
    vertices[:, 2] -= lift
    posed = Posed(posed.vertices - [0, 0, lift], posed.keypoints - [0, 0, lift])
    camera, seen, crop = random_camera(rng, vertices, height, width)
    background, outdoors = random_background(rng, camera)
    light = random_light(rng, camera, outdoors)
    scene = Scene(vertices, mesh.faces, mesh.fields)

    rays = camera.rays(height, width, SAMPLES)
    surface = _surface(scene, mesh, vertices, normals, who, camera, rays)
    behind = backdrop(background, camera, rays)
    colour = _lit_background(scene, behind, light, camera, rays)
    colour = _blurred(colour, behind, camera, background.blur, height)
    key, ambient = _visibility(scene, surface.position, surface.normal, light, surface.index, rays.shape[1])
    shaded = _shade(surface.colour, surface.normal, light, key, ambient)
    colour[surface.index] = shaded + _sheen(surface, mesh.gloss, rays.reshape(-1, 3)[surface.index], light, key)
    fine = np.minimum(colour, 20).reshape(height, SAMPLES, width, SAMPLES, 3)
    mean = np.add.reduce([fine[:, i, :, j] for i in range(SAMPLES) for j in range(SAMPLES)]) / SAMPLES**2
    parts = _part_map(surface, (rays.shape[0], rays.shape[1]))
    image = _develop(rng, mean, parts > 0)
    keypoints = _keypoints(posed, camera, scene, mesh, height, width)
    rows, columns = np.nonzero(parts)
    box = np.array([columns.min(), rows.min(), columns.max(), rows.max()] if len(rows) else [0] * 4, np.float32)
    return Picture(image, parts, keypoints, box, _caption(who, keypoints, pose_words, seen, crop, background))
