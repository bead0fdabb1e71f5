"""Shading: people and place as one mesh, what the camera's rays hit there, and the light that comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffbody_ref.data.synthetic import clothing
from diffbody_ref.data.synthetic.cast import Actor
from diffbody_ref.data.synthetic.paint import person_albedo
from diffbody_ref.data.synthetic.scene import Camera, Light, Place
from diffbody_ref.data.synthetic.solids import Solid
from diffbody_ref.data.synthetic.surfaces import Surface, paint
from diffbody_ref.data.synthetic.tracing import Scene

SKY, FLOOR, CEILING = -1, -2, -3  # owners of samples that hit no triangle
_HAZE = 700.0  # metres over which the air removes 63 % of a thing's contrast outdoors


@dataclass(frozen=True)
class Hits:
    """What M rays hit.

    Attributes:
        owner: int32 (M,): number of the actor, or number of actors plus number of the solid, or SKY, FLOOR, CEILING.
        depth: float32 (M,), metres along the ray; inf for the sky.
        position: float32 (M, 3), metres.
        normal: float32 (M, 3), unit normals.
        colour: float32 (M, 3), albedo, or radiance of the sky; linear RGB.
        gloss: float32 (M,), see `Surface`.
        glow: float32 (M,), see `Surface`.
        shine: float32 (M, 2), strength and exponent of a person's highlights.
        label: uint8 (M,), an actor's part plus one, 0 elsewhere.
        thin: bool (M,), whether the ray hit a leaf, through which light passes.
    """

    owner: np.ndarray
    depth: np.ndarray
    position: np.ndarray
    normal: np.ndarray
    colour: np.ndarray
    gloss: np.ndarray
    glow: np.ndarray
    shine: np.ndarray
    label: np.ndarray
    thin: np.ndarray


def flat_normals(solid: Solid) -> np.ndarray:
    """Area-weighted unit normals at a solid's vertices (N, 3)."""
    return clothing.vertex_normals(solid.vertices, solid.faces)


def scene_of(solids: list[Solid]) -> Scene:
    """A scene that only contains solids, to test what is where."""
    starts = np.cumsum([0] + [len(s.vertices) for s in solids])
    faces = np.concatenate([s.faces + start for s, start in zip(solids, starts, strict=False)])
    vertices = np.concatenate([s.vertices for s in solids])
    return Scene(vertices, faces, np.ones_like(vertices))


class Shot:
    """Actors and place, ready to be seen by a camera.

    Attributes:
        actors: the people; the first one is the main person.
        place: the place.
        scene: actors and solids as one mesh; the faces of the first actor come first.
    """

    def __init__(self, actors: list[Actor], place: Place) -> None:
        self.actors, self.place = actors, place
        solids = place.solids
        self._counts = [len(a.mesh.faces) for a in actors] + [len(s.faces) for s in solids]
        vertices = [a.vertices for a in actors] + [s.vertices for s in solids]
        starts = np.cumsum([0] + [len(v) for v in vertices])
        faces = [a.mesh.faces for a in actors] + [s.faces for s in solids]
        self._faces = np.concatenate([f + start for f, start in zip(faces, starts, strict=False)]).astype(np.int32)
        self._vertices = np.concatenate(vertices).astype(np.float32)
        rest = len(self._vertices) - sum(len(a.vertices) for a in actors)
        fields = np.concatenate([*(a.mesh.fields for a in actors), np.ones((rest, 3), np.float32)])
        self._owner = np.repeat(np.arange(len(self._counts), dtype=np.int32), self._counts)
        self._starts = starts
        self.scene = Scene(self._vertices, self._faces, fields)

    def tints(self) -> np.ndarray:
        """The approximate colour of each face, for the light that it reflects: float32 (F, 3)."""
        skin = np.array([0.22, 0.17, 0.14], np.float32)
        rows = [skin] * len(self.actors) + [s.surface.colours[0] * (1 + 2 * s.surface.glow) for s in self.place.solids]
        return np.stack(rows)[self._owner].astype(np.float32)

    def hits(self, camera: Camera, rays: np.ndarray) -> Hits:
        """What the camera's rays (M, 3) hit."""
        count = len(rays)
        face, depth, weights = self.scene.trace(camera.position, rays, 400.0)
        owner = np.where(face >= 0, self._owner[face], SKY)
        depth = np.where(face >= 0, depth, np.inf).astype(np.float32)
        planes = [(0.0, FLOOR)] + ([(self.place.ceiling, CEILING)] if self.place.ceiling else [])
        for z, number in planes:
            with np.errstate(divide="ignore", invalid="ignore"):
                t = (np.float32(z) - np.float32(camera.position[2])) / rays[:, 2]
            nearer = (t > 0) & (t < depth) & (t < 400)
            owner[nearer], depth[nearer] = number, t[nearer]
        position = camera.position.astype(np.float32) + rays * np.where(np.isfinite(depth), depth, 0)[:, None]
        hits = Hits(
            owner,
            depth,
            position,
            np.tile(np.array([0, 0, 1], np.float32), (count, 1)),
            np.zeros((count, 3), np.float32),
            np.zeros(count, np.float32),
            np.zeros(count, np.float32),
            np.tile(np.array([0, 1], np.float32), (count, 1)),
            np.zeros(count, np.uint8),
            np.zeros(count, bool),
        )
        order = np.argsort(owner, kind="stable")
        numbers, first = np.unique(owner[order], return_index=True)
        for number, index in zip(numbers, np.split(order, first[1:]), strict=True):
            if number == SKY:
                hits.colour[index] = self.place.sky.colour(rays[index])
            elif number == FLOOR:
                self._paint(hits, index, self.place.floor, position[index, :2], depth[index], rays[index, 2], camera)
            elif number == CEILING:
                hits.normal[index] = [0, 0, -1]
                hits.colour[index] = 0.72
            elif number < len(self.actors):
                self._person(hits, index, int(number), face[index], weights[index], rays[index])
            else:
                self._solid(hits, index, int(number), face[index], weights[index], rays[index], camera)
        return hits

    def _paint(
        self,
        hits: Hits,
        index: np.ndarray,
        s: Surface,
        uv: np.ndarray,
        depth: np.ndarray,
        facing: np.ndarray,
        camera: Camera,
    ) -> None:
        """Set colour, gloss and glow of hits at surface coordinates uv (m, 2)."""
        footprint = depth / camera.focal / np.maximum(np.abs(facing), 0.05)
        hits.colour[index] = paint(s, uv[:, 0], uv[:, 1], footprint)
        hits.gloss[index], hits.glow[index] = s.gloss, s.glow

    def _solid(
        self,
        hits: Hits,
        index: np.ndarray,
        number: int,
        face: np.ndarray,
        weights: np.ndarray,
        rays: np.ndarray,
        camera: Camera,
    ) -> None:
        """Set everything about the hits on a solid."""
        solid = self.place.solids[number - len(self.actors)]
        corners = self._faces[face] - self._starts[number]
        normal = np.einsum("mc,mcd->md", weights, flat_normals(solid)[corners])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
        facing = (normal * rays).sum(1)
        hits.normal[index] = normal * np.where(facing > 0, -1, 1)[:, None]
        hits.thin[index] = solid.surface.pattern == "leaf"
        uv = np.einsum("mc,mcd->md", weights, solid.uv[corners])
        self._paint(hits, index, solid.surface, uv, hits.depth[index], facing, camera)

    def _person(
        self, hits: Hits, index: np.ndarray, number: int, face: np.ndarray, weights: np.ndarray, rays: np.ndarray
    ) -> None:
        """Set everything about the hits on an actor."""
        person = self.actors[number]
        mesh = person.mesh
        face = face - sum(self._counts[:number])
        corners = mesh.faces[face]

        def blend(rows: np.ndarray) -> np.ndarray:
            return np.einsum("mc,mcd->md", weights, rows[corners])

        normal = blend(person.normals)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
        normal *= np.where((normal * rays).sum(1) > 0.25, -1, 1)[:, None].astype(np.float32)  # on the inside of cloth
        hits.normal[index] = normal
        parts, kind = blend(mesh.parts), mesh.kind[face]
        hits.colour[index] = person_albedo(person.who, mesh, kind, blend(mesh.template), parts)
        hits.label[index] = np.where(parts.sum(1) > 0.5, parts.argmax(1) + 1, 0)  # carried things have no part
        hits.shine[index] = mesh.gloss[kind]

    def radiance(self, hits: Hits, rays: np.ndarray, shape: tuple[int, int], seed: int) -> np.ndarray:
        """The light that comes back along the rays: linear RGB (M, 3).

        Args:
            hits: what the rays hit.
            rays: (M, 3), unit directions.
            shape: rows and columns of the grid of samples.
            seed: seed of the random secondary rays.
        """
        light, lit = self.place.light, np.flatnonzero((hits.owner != SKY) & (hits.glow == 0))
        position, normal = hits.position[lit], hits.normal[lit]
        normal = np.where(hits.thin[lit, None], 0.5 * normal + 0.6 * light.direction, normal)
        key, around = np.zeros((len(rays), 1), np.float32), np.zeros((len(rays), 3), np.float32)
        key[lit, 0] = self.scene.shadow(position, normal, light.direction, light.spread, seed)
        around[lit] = self.scene.ambient(
            position,
            normal,
            self.tints(),
            light.sky,
            light.ground,
            light.fill,
            light.fill_direction,
            light.reach,
            seed + 1,
        )
        both = _smoothed(np.concatenate([key, around], 1), hits, shape, (1, 2))
        key, around = both[:, :1], _smoothed(both[:, 1:], hits, shape, (4,))
        facing = np.zeros((len(rays), 1), np.float32)
        facing[lit, 0] = np.clip(normal @ light.direction, 0, 1)
        out = hits.colour * (around + light.key * facing * key)
        out += _highlights(hits, rays, light, key)
        glossy = np.flatnonzero(hits.gloss > 0)
        if len(glossy):
            out[glossy] += self._reflection(hits, rays, glossy)
        glowing = np.flatnonzero(hits.glow > 0)
        out[glowing] = hits.colour[glowing] * hits.glow[glowing, None] * light.sky.mean()
        if not self.place.ceiling:
            air = 1 - np.exp(-np.where(np.isfinite(hits.depth), hits.depth, 0) / _HAZE)
            out += (self.place.sky.horizon * 0.8 - out) * (air * (hits.owner != SKY))[:, None].astype(np.float32)
        sky = hits.owner == SKY
        out[sky] = hits.colour[sky]
        return out

    def _reflection(self, hits: Hits, rays: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The reflection of the sky, or of the room's walls, in a clear coat (Schlick's approximation)."""
        normal, ray = hits.normal[index], rays[index]
        cosine = -(normal * ray).sum(1, keepdims=True)
        mirrored = ray + 2 * cosine * normal
        f0 = hits.gloss[index, None]
        fresnel = np.minimum(f0 + (1 - f0) * (1 - np.clip(cosine, 0, 1)) ** 5, 0.7)
        return fresnel * self.place.sky.colour(mirrored)


def _highlights(hits: Hits, rays: np.ndarray, light: Light, key: np.ndarray) -> np.ndarray:
    """The soft highlights of people (Blinn's model)."""
    out = np.zeros_like(rays)
    index = np.flatnonzero(hits.shine[:, 0] > 0)
    half = light.direction - rays[index]
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    shine = np.clip((hits.normal[index] * half).sum(1), 0, 1) ** hits.shine[index, 1] * hits.shine[index, 0]
    out[index] = (shine * key[index, 0])[:, None] * light.key
    return out


def _smoothed(values: np.ndarray, hits: Hits, shape: tuple[int, int], steps: tuple[int, ...]) -> np.ndarray:
    """Average noisy light over neighbouring samples on one surface (edge-avoiding à-trous, Dammertz et al. 2010).

    For each of `steps` there is one pass of 3 × 3 taps, this many samples apart. Taps are weighted by the similarity of
    the normals and by how near the neighbour lies to the sample's tangent plane.
    """
    grid = values.reshape(*shape, -1)
    normal, position = hits.normal.reshape(*shape, 3), hits.position.reshape(*shape, 3)
    slack = (0.004 + 0.004 * np.where(np.isfinite(hits.depth), hits.depth, 0)).reshape(shape)
    for step in steps:
        total, weight = grid.copy(), np.ones((*shape, 1), np.float32)
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            here, there = _shifted(shape, dy * step, dx * step)
            off = position[there] - position[here]
            plane = np.abs(np.einsum("...c,...c->...", off, normal[here])) / slack[here]
            like = np.clip(np.einsum("...c,...c->...", normal[here], normal[there]), 0, 1) ** 8
            w = (like * np.exp(-plane * plane))[..., None].astype(np.float32)
            total[here] += w * grid[there]
            weight[here] += w
            total[there] += w * grid[here]
            weight[there] += w
        grid = total / weight
    return grid.reshape(values.shape)


def _shifted(shape: tuple[int, int], dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices that select a grid's samples, and their neighbours at the offset (dy, dx), dy >= 0."""
    rows, columns = shape
    left, right = max(0, -dx), columns - max(0, dx)
    return (slice(0, rows - dy), slice(left, right)), (slice(dy, rows), slice(left + dx, right + dx))
