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
) -> float:
    travelled = wp.float32(0.0)
    for _ in range(8):
        query = wp.mesh_query_ray(mesh, origin + ray * travelled, ray, reach - travelled)
        if not query.result:
            return reach
        travelled += query.t
        if _inside(faces, fields, query.face, query.u, query.v):
            return travelled
        travelled += 1.0e-4
    return reach


@wp.func
def _tilted(axis: wp.vec3, angle: float, turn: float) -> wp.vec3:
    helper = wp.vec3(1.0, 0.0, 0.0)
    if wp.abs(axis[0]) > 0.7:
        helper = wp.vec3(0.0, 1.0, 0.0)
    first = wp.normalize(wp.cross(axis, helper))
    second = wp.cross(axis, first)
    return axis * wp.cos(angle) + (first * wp.cos(turn) + second * wp.sin(turn)) * wp.sin(angle)


@wp.kernel
def _light(
    mesh: wp.uint64,
    faces: wp.array(dtype=int),  # type: ignore[valid-type]
    fields: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    points: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    normals: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    samples: wp.array(dtype=int),  # type: ignore[valid-type]
    count: int,
    direction: wp.vec3,
    spread: float,
    epsilon: float,
    reach: float,
    out: wp.array(dtype=wp.vec2),  # type: ignore[valid-type]
) -> None:
    i = wp.tid()
    normal = normals[i]
    start = points[i] + normal * epsilon
    place = (float(samples[i]) + 0.5) / float(count)
    turn = 2.4 * float(samples[i])  # about the golden angle
    key = wp.float32(0.0)
    if wp.dot(normal, direction) > 0.0:
        key_ray = _tilted(direction, spread * wp.sqrt(place), turn)
        if _blocked(mesh, faces, fields, start, key_ray, 6.0) >= 6.0:
            key = wp.float32(1.0)
    free = wp.float32(-1.0)
    if samples[i] % 3 == 0:
        out_ray = _tilted(normal, wp.asin(0.97 * wp.sqrt(place)), turn + 1.0)
        free = _blocked(mesh, faces, fields, start, out_ray, reach) / reach
    out[i] = wp.vec2(key, free)


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
        arguments = [
            wp.array(np.ascontiguousarray(x, np.float32), dtype=wp.vec3, device=self.device)
            for x in (np.broadcast_to(origins, rays.shape), rays)
        ]
        inputs = [self._mesh.id, self._faces, self._fields, *arguments, float(reach), hits]
        wp.launch(_first_hit, dim=count, inputs=inputs, device=self.device)
        found = hits.numpy()
        weights = np.stack([found[:, 2], found[:, 3], 1 - found[:, 2] - found[:, 3]], 1)
        return found[:, 0].astype(np.int32), found[:, 1], weights

    def light(
        self,
        points: np.ndarray,
        normals: np.ndarray,
        samples: np.ndarray,
        count: int,
        direction: np.ndarray,
        spread: float,
        reach: float,
    ) -> np.ndarray:
        """Shares in [0, 1] of the key light and of the ambient light at surface points: float32 (M, 2).

        Each point sends one ray into the light's cone, and every third number in `samples` (0 ... count - 1) also one
        into its own hemisphere, cosine weighted; the others have -1 there. Which ray depends on the number, so that a
        pixel's samples together cover both.

        Args:
            points, normals: (M, 3), metres and unit.
            direction, spread: towards the light, and the half angle of its cone in radians.
            reach: metres within which something dims the ambient light.
        """
        out = wp.zeros(len(points), dtype=wp.vec2, device=self.device)
        arrays = [
            wp.array(np.ascontiguousarray(x, np.float32), dtype=wp.vec3, device=self.device) for x in (points, normals)
        ]
        numbers = wp.array(np.ascontiguousarray(samples, np.int32), dtype=int, device=self.device)
        towards = wp.vec3(*(float(x) for x in direction))
        inputs = [
            self._mesh.id,
            self._faces,
            self._fields,
            *arrays,
            numbers,
            count,
            towards,
            float(spread),
            _EPSILON,
            float(reach),
            out,
        ]
        wp.launch(_light, dim=len(points), inputs=inputs, device=self.device)
        return out.numpy()
