"""From a posed body to the dressed mesh: shells for garments, shoes and hair, each cut by smooth fields.

A shell's vertex carries three *fields* (metres, positive inside); where the smallest of them, interpolated over the
triangle, is negative the shell is not there. So a hem is as sharp as the rays, whatever the triangles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from diffbody_ref.data.synthetic.body import ARMS, HEAD, BodyModel, Sheet
from diffbody_ref.data.synthetic.textures import noise
from diffbody_ref.data.synthetic.wardrobe import Garment, Hair, Identity

BODY, EYES, UPPER, LOWER, SHOES, HAIR, HAT = range(7)  # what a face is of

# Landmarks of the template (metres), see BodyModel.joints.
SHOULDER, WRIST = np.array([0.161, -0.017, 0.530]), np.array([0.425, -0.176, 0.243])
HIP_Z, ANKLE_Z, WAIST_Z, SKIRT_TOP_Z = 0.04, -0.73, 0.115, 0.16
NECK = np.array([0.0, -0.02, 0.575])
_HAIRLINE = np.array(
    [
        (-0.17, 0.803),
        (-0.135, 0.797),
        (-0.112, 0.775),
        (-0.096, 0.735),
        (-0.062, 0.742),
        (-0.045, 0.7),
        (-0.01, 0.655),
        (0.1, 0.65),
    ]
)


@dataclass(frozen=True)
class Dressed:
    """What the identity's mesh is made of, before it is posed; N vertices, F faces.

    Attributes:
        source: sparse (N, 19158).
        offset: float32 (N,), metres along the normal.
        folds: float32 (N,), amplitude of the pose's folds in metres.
        faces: int32 (F, 3); kind: int8 (F,): BODY ... HAT.
        fields: float32 (N, 3); template: float32 (N, 3); parts: float32 (N, 5).
    """

    source: sp.csr_matrix
    offset: np.ndarray
    folds: np.ndarray
    faces: np.ndarray
    kind: np.ndarray
    fields: np.ndarray
    template: np.ndarray
    parts: np.ndarray


def along_arm(p: np.ndarray) -> np.ndarray:
    """Template positions (..., 3) to the place along the arm: 0 at the shoulder, 1 at the wrist."""
    axis = WRIST - SHOULDER
    q = np.stack([np.abs(p[..., 0]), p[..., 1], p[..., 2]], -1) - SHOULDER
    return (q @ axis / (axis @ axis)).astype(np.float32)


def upper_fields(g: Garment, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Sleeve, hem and neckline fields (..., 3) of an upper garment at template positions p."""
    arm = parts[..., ARMS]
    sleeve = (g.sleeve - along_arm(p)) * 0.42 + (1 - arm)
    hem = p[..., 2] - g.hem + arm
    if g.neck == 0:
        neck = 0.605 - p[..., 2]
    else:
        q = (p - NECK) * np.array([1.0, 0.9, 1.1])
        front = np.clip((-0.02 - p[..., 1]) / 0.03, 0, 1)
        vee = g.vee * np.clip(1 - np.abs(p[..., 0]) / (0.35 * g.vee + 0.02), 0, 1) * front
        neck = np.sqrt((q * q).sum(-1)) - g.neck - vee
    neck = np.minimum(neck, 0.612 - p[..., 2])
    return np.stack([sleeve, hem, neck], -1).astype(np.float32)


def lower_fields(g: Garment, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Waist, hem and (no) third field of a lower garment."""
    top = (SKIRT_TOP_Z if g.cut == "skirt" else WAIST_Z) - p[..., 2] - 2 * parts[..., ARMS]
    return np.stack([top, p[..., 2] - g.hem, np.ones_like(top)], -1).astype(np.float32)


def shoe_fields(g: Garment, p: np.ndarray) -> np.ndarray:
    """Field of a shoe: below its top, which is cut lower over the instep."""
    top = g.hem - p[..., 2] + (0.25 * np.clip(-p[..., 1] - 0.06, 0, 0.06) if g.hem > -0.7 else 0.0) * -1.0
    return np.stack([top, np.ones_like(top), np.ones_like(top)], -1).astype(np.float32)


def scalp_field(hair: Hair | None, p: np.ndarray) -> np.ndarray:
    """How far inside the hairline a template position is, metres; hair None: a beanie's edge."""
    if hair is None:
        return (p[..., 2] - 0.765 - 0.18 * (-0.1 - p[..., 1]) * (p[..., 1] < 0)).astype(np.float32)
    line = np.interp(p[..., 1], _HAIRLINE[:, 0], _HAIRLINE[:, 1]) - hair.fringe * (p[..., 1] < -0.1)
    ragged = 0.005 * noise(1, p[..., 0] * 5 + hair.seed * 0.01, p[..., 1] * 3)
    ear = np.where(p[..., 2] < 0.755, (0.0795 - np.abs(p[..., 0])) * 3, 1.0)
    return np.minimum(p[..., 2] - line + ragged, ear).astype(np.float32)


def _three(field: np.ndarray) -> np.ndarray:
    return np.stack([field, np.ones_like(field), np.ones_like(field)], -1)


@dataclass(frozen=True)
class _Layer:
    sheet: Sheet
    fields: np.ndarray
    offset: np.ndarray
    folds: float
    kind: int


def _layers(model: BodyModel, who: Identity) -> list[_Layer]:
    cloth, skirt, body = model.cloth, model.skirt, model.body
    layers = [_Layer(body, np.ones((len(body.template), 3), np.float32), np.zeros(len(body.template)), 0.0, BODY)]
    layers.append(
        _Layer(
            model.eyes,
            np.ones((len(model.eyes.template), 3), np.float32),
            np.zeros(len(model.eyes.template)),
            0.0,
            EYES,
        )
    )
    z = cloth.template[:, 2]
    down = np.clip((HIP_Z - z) / (HIP_Z - ANKLE_Z), 0, 1)
    if who.lower.cut == "skirt":
        sz = skirt.template[:, 2]
        widen = who.lower.loose + who.lower.flare * np.clip((0.16 - sz) / 0.6, 0, 1)
        layers.append(_Layer(skirt, lower_fields(who.lower, skirt.template, skirt.parts * 0), widen, 0.012, LOWER))
    else:
        widen = who.lower.loose * np.clip(1 - (z - 0.02) / 0.12, 0.35, 1) + who.lower.flare * down
        layers.append(
            _Layer(
                cloth, lower_fields(who.lower, cloth.template, cloth.parts), widen, 0.3 * who.lower.loose + 0.001, LOWER
            )
        )
    hug = np.clip((z - who.upper.hem) / 0.08, 0, 1) * 0.35 + 0.65 if who.upper.hem > 0.08 else 1.0
    layers.append(
        _Layer(
            cloth,
            upper_fields(who.upper, cloth.template, cloth.parts),
            who.upper.loose * hug * np.ones(len(z)),
            0.35 * who.upper.loose,
            UPPER,
        )
    )
    sole = who.shoes.loose * (1 + 0.8 * np.clip((-0.79 - z) / 0.02, 0, 1))
    layers.append(_Layer(cloth, shoe_fields(who.shoes, cloth.template), sole, 0.0, SHOES))
    return layers + _head_layers(model, who)


def _head_layers(model: BodyModel, who: Identity) -> list[_Layer]:
    body, hair, layers = model.body, model.hair, []
    inside = scalp_field(who.hair, body.template)
    inside = np.where(body.parts[:, HEAD] > 0.5, inside, -1.0).astype(np.float32)
    if who.hair.style not in ("bald", "shaved"):
        rise = np.clip(inside / 0.05, 0, 1) ** 0.8
        lump = 1 + 0.16 * noise(
            1, body.template[:, 0] * 1.7 + 0.01 * who.hair.seed, body.template[:, 2] * 1.7 + body.template[:, 1]
        )
        flat = 0.4 if who.hat else 1.0
        layers.append(_Layer(body, _three(inside), 0.002 + who.hair.volume * rise * lump * flat, 0.0, HAIR))
    if who.hair.length < 0.9:
        p = hair.template
        ends = p[:, 2] - who.hair.length + 0.012 * noise(1, p[:, 0] * 4 + 0.01 * who.hair.seed, p[:, 1] * 4)
        x = np.abs(p[:, 0])
        face = np.maximum(np.maximum(x - 0.06, p[:, 1] + 0.07), p[:, 2] - 0.80)  # parted over the face
        back = np.maximum(p[:, 1] + 0.045, p[:, 2] - 0.66)  # below the chin it hangs behind the shoulders
        layers.append(
            _Layer(hair, np.stack([ends, face, back], 1).astype(np.float32), np.full(len(p), 0.004), 0.0, HAIR)
        )
    if who.hat is not None:
        edge = np.where(body.parts[:, HEAD] > 0.5, scalp_field(None, body.template), -1.0).astype(np.float32)
        layers.append(
            _Layer(body, _three(edge), 0.02 + 0.012 * np.clip((body.template[:, 2] - 0.8) / 0.04, 0, 1), 0.0, HAT)
        )
    return layers


def _buried(who: Identity, layer: _Layer) -> np.ndarray:
    """Vertices of the skin so far inside close-fitting clothes that nothing of them is ever seen."""
    p, parts = layer.sheet.template, layer.sheet.parts
    if layer.kind != BODY:
        return np.zeros(len(p), bool)
    covered = upper_fields(who.upper, p, parts).min(1) > 0.035
    covered |= shoe_fields(who.shoes, p).min(1) > 0.02
    if who.lower.cut != "skirt":
        covered |= lower_fields(who.lower, p, parts).min(1) > 0.035
    return covered


def dress(model: BodyModel, who: Identity) -> Dressed:
    """All layers of a person in one mesh, without the faces whose fields are negative throughout."""
    sources, offsets, folds, faces, kinds, fields, templates, parts = [], [], [], [], [], [], [], []
    start = 0
    for layer in _layers(model, who):
        corners = layer.sheet.faces
        deepest = np.maximum.reduce([layer.fields[corners[:, i]] for i in range(3)])
        there = (deepest > 0).all(1) & (~_buried(who, layer)[corners]).any(1)
        used, local = np.unique(layer.sheet.faces[there], return_inverse=True)
        faces.append(local.reshape(-1, 3).astype(np.int32) + start)
        kinds.append(np.full(len(faces[-1]), layer.kind, np.int8))
        sources.append(layer.sheet.source[used])
        offsets.append(np.broadcast_to(layer.offset, len(layer.fields))[used].astype(np.float32))
        folds.append(np.full(len(used), layer.folds, np.float32))
        fields.append(layer.fields[used])
        templates.append(layer.sheet.template[used])
        hung = layer.sheet.parts[used]
        parts.append(np.eye(5, dtype=np.float32)[[HEAD]].repeat(len(used), 0) if layer.kind in (HAIR, HAT) else hung)
        start += len(used)
    return Dressed(
        sp.vstack(sources).tocsr(),
        *(np.concatenate(rows) for rows in (offsets, folds, faces, kinds, fields, templates, parts)),
    )


def drape(dressed: Dressed, vertices: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The mesh's vertices and unit normals (N, 3) over a posed base mesh; folds differ with the seed."""
    surface = dressed.source @ vertices
    normals = vertex_normals(surface, dressed.faces)
    p = dressed.template
    phase = 0.137 * (seed % 997)
    fold = noise(2, p[:, 0] * 1.3 + 0.4 * p[:, 1] + phase, p[:, 2] * 0.9 + 0.8 * np.abs(p[:, 0]))
    fold += 0.7 * noise(1, p[:, 0] * 1.1 + phase, p[:, 2] * 1.6 + p[:, 1])
    moved = surface + normals * (dressed.offset + dressed.folds * np.clip(fold, -2, 2))[:, None]
    return moved.astype(np.float32), vertex_normals(moved, dressed.faces)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (N, 3)."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)
    normals = np.stack([np.bincount(faces.ravel(), np.repeat(area[:, i], 3), len(vertices)) for i in range(3)], 1)
    return (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)).astype(np.float32)
