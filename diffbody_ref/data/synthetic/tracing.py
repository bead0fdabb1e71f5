"""Ray tracing of a triangle mesh whose faces are cut by fields, with warp (the same code for CPU and CUDA)."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import numpy as np
import warp as wp

_EPSILON = 1.5e-3  # distance in metres from a surface at which its secondary rays start; less than the thinnest cloth's

UNWANTED = "Could not find or load the NVIDIA CUDA driver"  # warp's native code says so at every level


def _start_quietly() -> None:
    """Start warp without a greeting, and without its warning that a machine without a GPU has none."""
    wp.config.log_level = wp.LOG_ERROR
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            wp.init()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
    for line in lines:
        if UNWANTED not in line:
            print(line, file=sys.stderr)


_start_quietly()


@wp.func
def _inside(faces: wp.array(dtype=int), fields: wp.array(dtype=wp.vec3), face: int, u: float, v: float) -> bool:  # type: ignore[valid-type]
    """Whether all fields are positive at barycentric coordinates of a face."""
    value = u * fields[faces[3 * face]] + v * fields[faces[3 * face + 1]] + (1.0 - u - v) * fields[faces[3 * face + 2]]
    return wp.min(value) > 0.0


@wp.func
def _first_face(
    mesh: wp.uint64,
    faces: wp.array(dtype=int),  # type: ignore[valid-type]
    fields: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    origin: wp.vec3,
    ray: wp.vec3,
    reach: float,
    layers: int,
) -> wp.vec4:
    """The first face that stops a ray within `reach`, after at most `layers` faces that are cut away there.

    Returns (face, distance, u, v), with u and v barycentric; (-1, reach, 0, 0) if nothing stops the ray.
    """
    travelled = wp.float32(0.0)
    for _ in range(layers):
        query = wp.mesh_query_ray(mesh, origin + ray * travelled, ray, reach - travelled)
        if not query.result:
            return wp.vec4(-1.0, reach, 0.0, 0.0)
        travelled += query.t
        if _inside(faces, fields, query.face, query.u, query.v):
            return wp.vec4(float(query.face), travelled, query.u, query.v)
        travelled += 1.0e-4
    return wp.vec4(-1.0, reach, 0.0, 0.0)


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
    # 16: more cut layers than a person ever has on one ray.
    hits[i] = _first_face(mesh, faces, fields, origins[i], rays[i], reach, 16)


@wp.func
def _first_blocker(
    mesh: wp.uint64,
    faces: wp.array(dtype=int),  # type: ignore[valid-type]
    fields: wp.array(dtype=wp.vec3),  # type: ignore[valid-type]
    point: wp.vec3,
    normal: wp.vec3,
    ray: wp.vec3,
    epsilon: float,
    reach: float,
) -> wp.vec4:
    """`_first_face` of a secondary ray from a surface point, which starts `epsilon` metres off the surface."""
    return _first_face(mesh, faces, fields, point + normal * epsilon, ray, reach, 8)


@wp.func
def _tilted(axis: wp.vec3, angle: float, turn: float) -> wp.vec3:
    """The unit vector at `angle` from a unit `axis`, rotated about it by `turn` (radians)."""
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
        if _first_blocker(mesh, faces, fields, points[i], normals[i], ray, epsilon, reach)[0] < 0.0:
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
    hit = _first_blocker(mesh, faces, fields, points[i], normals[i], ray, epsilon, reach)
    if hit[0] >= 0.0:
        openness = hit[1] / reach  # light from far away fades in, so that walls do not block the room's light
        bounce = wp.cw_mul(tints[int(hit[0])], sky + ground) * 0.45
        light = light * openness + bounce * (1.0 - openness)
    out[i] = light


class Scene:
    """A mesh to trace. A face only exists where all fields, interpolated over it, are positive.

    Args:
        vertices: (N, 3), metres.
        faces: int (F, 3).
        fields: (N, 3), three fields at each vertex.
        device: warp's device, "cpu" or "cuda".
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray, fields: np.ndarray, device: str = "cpu") -> None:
        self.device = device
        self._faces = wp.array(np.ascontiguousarray(faces, np.int32).ravel(), dtype=int, device=device)
        self._fields = wp.array(np.ascontiguousarray(fields, np.float32), dtype=wp.vec3, device=device)
        points: Any = wp.array(np.ascontiguousarray(vertices, np.float32), dtype=wp.vec3, device=device)
        self._mesh = wp.Mesh(points, self._faces)

    def trace(
        self, origins: np.ndarray, rays: np.ndarray, reach: float = 100.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first hit of each ray.

        Args:
            origins: (3,) or (M, 3), metres.
            rays: (M, 3), unit directions.
            reach: metres within which faces are hit.

        Returns:
            face int32 (M,), -1 if nothing is hit; depth float32 (M,) in metres, `reach` if nothing is hit; barycentric
            weights of the face's corners float32 (M, 3).
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
        """Visibility of the key light: 1 if one random ray into its cone is free, else 0; float32 (M,).

        Args:
            points: (M, 3), metres.
            normals: (M, 3), unit normals at the points.
            direction: (3,), unit vector towards the light.
            spread: half angle of the light's cone in radians.
            seed: seed of the random rays.
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
        """Ambient light at surface points, estimated by one cosine-weighted random ray each: float32 (M, 3).

        A free ray brings the environment's light from its direction, graded from `ground` below to `sky` above, and
        the light of the broad lamp or window `fill` around `fill_direction`. A ray that is stopped within `reach`
        metres brings instead, the more the nearer the hit, the light that the face reflects.

        Args:
            points: (M, 3), metres.
            normals: (M, 3), unit normals at the points.
            tints: (F, 3), linear RGB of the faces.
            sky: (3,), linear RGB from straight above.
            ground: (3,), linear RGB from straight below.
            fill: (3,), linear RGB of the broad source.
            fill_direction: (3,), unit vector towards the broad source.
            reach: metres within which faces dim or tint the light.
            seed: seed of the random rays.
        """
        out = wp.zeros(len(points), dtype=wp.vec3, device=self.device)
        colours = [wp.vec3(*(float(x) for x in row)) for row in (sky, ground, fill, fill_direction)]
        inputs = [self._mesh.id, self._faces, self._fields, *self._vectors(tints, points, normals)]
        inputs += [seed, *colours, _EPSILON, float(reach), out]
        wp.launch(_ambient, dim=len(points), inputs=inputs, device=self.device)
        return out.numpy()

    def _vectors(self, *arrays: np.ndarray) -> list:
        return [wp.array(np.ascontiguousarray(x, np.float32), dtype=wp.vec3, device=self.device) for x in arrays]
