"""Rays against a triangle mesh whose faces are cut by fields, with warp (CPU and CUDA by the same code)."""

from __future__ import annotations

from typing import Any

import numpy as np
import warp as wp

wp.config.quiet = True
_EPSILON = 1.5e-3  # metres off a surface at which its secondary rays start; below the thinnest cloth's distance


@wp.func
def _inside(faces: wp.array(dtype=int), fields: wp.array(dtype=wp.vec3), face: int, u: float, v: float) -> bool:  # type: ignore[valid-type]
    value = u * fields[faces[3 * face]] + v * fields[faces[3 * face + 1]] + (1.0 - u - v) * fields[faces[3 * face + 2]]
    return wp.min(value) > 0.0


@wp.kernel
def _first_hit(
    mesh: wp.uint64,
    faces: wp.array(dtype=int),  # type: ignore[valid-type]
    fields: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    origins: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    rays: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    reach: float,
    hits: wp.array(dtype=wp.vec4),  # type: ignore[valid-type]
) -> None:
    i = wp.tid()
    origin = origins[i]
    ray = rays[i]
    travelled = wp.float32(0.0)
    hits[i] = wp.vec4(-1.0, 0.0, 0.0, 0.0)
    for _ in range(16):  # more cut layers than a person ever has on one ray
        query = wp.mesh_query_ray(mesh, origin + ray * travelled, ray, reach - travelled)
        if not query.result:
            break
        travelled += query.t
        if _inside(faces, fields, query.face, query.u, query.v):
            hits[i] = wp.vec4(float(query.face), travelled, query.u, query.v)
            break
        travelled += 1.0e-4


@wp.func
def _blocked(
    mesh: wp.uint64,
    faces: wp.array(dtype=int),  # type: ignore[valid-type]
    fields: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    origin: wp.vec3,
    ray: wp.vec3,
    reach: float,
) -> wp.vec2:
    """Face, or -1, and distance of what stops a ray within `reach`."""
    travelled = wp.float32(0.0)
    for _ in range(8):
        query = wp.mesh_query_ray(mesh, origin + ray * travelled, ray, reach - travelled)
        if not query.result:
            return wp.vec2(-1.0, reach)
        travelled += query.t
        if _inside(faces, fields, query.face, query.u, query.v):
            return wp.vec2(float(query.face), travelled)
        travelled += 1.0e-4
    return wp.vec2(-1.0, reach)


@wp.func
def _tilted(axis: wp.vec3, angle: float, turn: float) -> wp.vec3:
    helper = wp.vec3(1.0, 0.0, 0.0)
    if wp.abs(axis[0]) > 0.7:
        helper = wp.vec3(0.0, 1.0, 0.0)
    first = wp.normalize(wp.cross(axis, helper))
    second = wp.cross(axis, first)
    return axis * wp.cos(angle) + (first * wp.cos(turn) + second * wp.sin(turn)) * wp.sin(angle)


@wp.kernel
def _shadow(
    mesh: wp.uint64,
    faces: wp.array(dtype=int),  # type: ignore[valid-type]
    fields: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    points: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    normals: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    seed: int,
    direction: wp.vec3,
    spread: float,
    epsilon: float,
    reach: float,
    out: wp.array(dtype=float),  # type: ignore[valid-type]
) -> None:
    i = wp.tid()
    if wp.dot(normals[i], direction) > 0.0:
        state = wp.rand_init(seed, i)
        ray = _tilted(direction, spread * wp.sqrt(wp.randf(state)), 6.2831853 * wp.randf(state))
        if _blocked(mesh, faces, fields, points[i] + normals[i] * epsilon, ray, reach)[0] < 0.0:
            out[i] = 1.0


@wp.kernel
def _ambient(
    mesh: wp.uint64,
    faces: wp.array(dtype=int),  # type: ignore[valid-type]
    fields: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    tints: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    points: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    normals: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    seed: int,
    sky: wp.vec3,
    ground: wp.vec3,
    fill: wp.vec3,
    fill_direction: wp.vec3,
    epsilon: float,
    reach: float,
    out: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
) -> None:
    i = wp.tid()
    state = wp.rand_init(seed, i)
    ray = _tilted(normals[i], wp.asin(wp.sqrt(wp.randf(state))), 6.2831853 * wp.randf(state))
    up = 0.5 + 0.5 * ray[2]
    side = wp.max(wp.dot(ray, fill_direction), 0.0)
    light = ground + (sky - ground) * up + fill * (side * side)
    hit = _blocked(mesh, faces, fields, points[i] + normals[i] * epsilon, ray, reach)
    if hit[0] >= 0.0:
        open = hit[1] / reach  # light from afar fades in, so that walls do not shut out the room's light
        bounce = wp.cw_mul(tints[int(hit[0])], sky + ground) * 0.45
        light = light * open + bounce * (1.0 - open)
    out[i] = light


class Scene:
    """A mesh to trace: vertices (N, 3), faces (F, 3), fields (N, 3). A face is where all its fields are positive."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray, fields: np.ndarray, device: str = "cpu") -> None:
        self.device = device
        self._faces = wp.array(np.ascontiguousarray(faces, np.int32).ravel(), dtype=int, device=device)
        self._fields = wp.array(np.ascontiguousarray(fields, np.float32), dtype=wp.vec3, device=device)
        points: Any = wp.array(np.ascontiguousarray(vertices, np.float32), dtype=wp.vec3, device=device)
        self._mesh = wp.Mesh(points, self._faces)

    def trace(
        self, origins: np.ndarray, rays: np.ndarray, reach: float = 100.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First hit of each ray (M, 3), unit directions.

        Returns:
            face int32 (M,), -1 where nothing is hit within `reach` metres; depth float32 (M,);
            barycentric weights of the face's corners float32 (M, 3).
        """
        count = len(rays)
        hits = wp.empty(count, dtype=wp.vec4, device=self.device)
        arguments = self._vectors(np.broadcast_to(origins, rays.shape), rays)
        inputs = [self._mesh.id, self._faces, self._fields, *arguments, float(reach), hits]
        wp.launch(_first_hit, dim=count, inputs=inputs, device=self.device)
        found = hits.numpy()
        weights = np.stack([found[:, 2], found[:, 3], 1 - found[:, 2] - found[:, 3]], 1)
        return found[:, 0].astype(np.int32), found[:, 1], weights

    def shadow(
        self,
        points: np.ndarray,
        normals: np.ndarray,
        direction: np.ndarray,
        spread: float,
        seed: int,
        reach: float = 30.0,
    ) -> np.ndarray:
        """1 where one random ray into the key light's cone is free, else 0: float32 (M,).

        Args:
            points, normals: (M, 3), metres and unit.
            direction, spread: towards the light, and the half angle of its cone in radians.
            reach: metres within which something casts a shadow.
        """
        out = wp.zeros(len(points), dtype=float, device=self.device)
        towards = wp.vec3(*(float(x) for x in direction))
        inputs = [self._mesh.id, self._faces, self._fields, *self._vectors(points, normals)]
        inputs += [seed, towards, float(spread), _EPSILON, float(reach), out]
        wp.launch(_shadow, dim=len(points), inputs=inputs, device=self.device)
        return out.numpy()

    def ambient(
        self,
        points: np.ndarray,
        normals: np.ndarray,
        tints: np.ndarray,
        sky: np.ndarray,
        ground: np.ndarray,
        fill: np.ndarray,
        fill_direction: np.ndarray,
        reach: float,
        seed: int,
    ) -> np.ndarray:
        """Light from all around at surface points, by one cosine-weighted random ray each: float32 (M, 3).

        A free ray brings the environment's light of its direction, from `ground` below to `sky` above, and of the
        broad lamp or window `fill` around `fill_direction`; one that is stopped within `reach` metres brings instead,
        the more the nearer, what the face there throws back (its colour in `tints` (F, 3)).
        """
        out = wp.zeros(len(points), dtype=wp.vec3, device=self.device)
        colours = [wp.vec3(*(float(x) for x in row)) for row in (sky, ground, fill, fill_direction)]
        inputs = [self._mesh.id, self._faces, self._fields, *self._vectors(tints, points, normals)]
        inputs += [seed, *colours, _EPSILON, float(reach), out]
        wp.launch(_ambient, dim=len(points), inputs=inputs, device=self.device)
        return out.numpy()

    def _vectors(self, *arrays: np.ndarray) -> list:
        return [wp.array(np.ascontiguousarray(x, np.float32), dtype=wp.vec3, device=self.device) for x in arrays]
