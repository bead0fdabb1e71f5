"""The dressed mesh of a body: shells for garments, shoes and hair, cards of hair, and accessories.

A shell is a sheet of the body that is moved outwards along its normals. Its vertices have three *fields* (metres,
positive inside); where the smallest of them, interpolated over the triangle, is negative the shell does not exist. So
the sharpness of a hem does not depend on the size of the triangles.

In this module p are template positions (..., 3), parts are part weights (..., 5), and g is a garment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from diffbody_ref.data.synthetic.body import ARMS, FEET, HEAD, TORSO, BodyModel, Sheet
from diffbody_ref.data.synthetic.garments import Garment
from diffbody_ref.data.synthetic.hair import Cards, beard_cards, beard_field, hair_cards, scalp_field
from diffbody_ref.data.synthetic.pieces import Piece, build, hood, soles
from diffbody_ref.data.synthetic.skeleton import rotation
from diffbody_ref.data.synthetic.textures import Material, noise
from diffbody_ref.data.synthetic.wardrobe import Identity

# Kinds of faces; from PIECE on, the pieces of `Dressed.pieces` in order.
BODY, EYES, UPPER, LOWER, OUTER, SHOES, HAIR, CARDS, STRAP, TEETH, PIECE = range(11)
_GLOSS = {BODY: (0.05, 18.0), EYES: (0.5, 200.0), SHOES: (0.08, 30.0), HAIR: (0.06, 14.0), CARDS: (0.1, 22.0)}

# Landmarks of the template in metres, see `BodyModel.joints`.
SHOULDER, WRIST = np.array([0.161, -0.017, 0.530]), np.array([0.425, -0.176, 0.243])
HIP_Z, KNEE_Z, ANKLE_Z, WAIST_Z, SKIRT_TOP_Z = 0.04, -0.37, -0.73, 0.115, 0.16
ELBOW = 0.48  # position along the arm, see `along_arm`
NECK = np.array([0.0, -0.02, 0.575])


@dataclass(frozen=True)
class Dressed:
    """The mesh of a dressed identity before it is posed, with N vertices and F faces.

    Attributes:
        source: sparse (N, 19158), matrix from the posed base mesh's vertices to this mesh's.
        shift: float32 (N, 3), metres that are added in world axes.
        offset: float32 (N,), metres along the normal.
        folds: float32 (N,), amplitude in metres of the folds that a pose makes.
        cored: int (C,), numbers of the vertices whose normals point away from a core point.
        core: sparse (C, 19158), matrix from the posed base mesh's vertices to the core points.
        faces: int32 (F, 3).
        kind: int16 (F,), kind of each face: BODY ... PIECE + i.
        fields: float32 (N, 3), metres.
        template: float32 (N, 3), template positions; for cards and pieces, their charts (see `Cards`, `Piece`).
        parts: float32 (N, 5), part weights; all zero on carried things.
        pieces: material of each piece.
        gloss: float32 (kinds, 2), strength and exponent of the highlights of each kind.
    """

    source: sp.csr_matrix
    shift: np.ndarray
    offset: np.ndarray
    folds: np.ndarray
    cored: np.ndarray
    core: sp.csr_matrix
    faces: np.ndarray
    kind: np.ndarray
    fields: np.ndarray
    template: np.ndarray
    parts: np.ndarray
    pieces: tuple[Material, ...]
    gloss: np.ndarray


def along_arm(p: np.ndarray) -> np.ndarray:
    """The position along the arm at template positions (..., 3): 0 at the shoulder, 1 at the wrist."""
    axis = WRIST - SHOULDER
    q = np.stack([np.abs(p[..., 0]), p[..., 1], p[..., 2]], -1) - SHOULDER
    return (q @ axis / (axis @ axis)).astype(np.float32)


def neck_distance(g: Garment, p: np.ndarray) -> np.ndarray:
    """The distance in metres of template positions (..., 3) from a garment's neckline, positive outside it."""
    q = (p - NECK) * np.array([1.0, 0.9, 1.1])
    front = np.clip((-0.02 - p[..., 1]) / 0.03, 0, 1)
    vee = g.vee * np.clip(1 - np.abs(p[..., 0]) / (0.35 * g.vee + 0.02), 0, 1) * front
    return (np.sqrt((q * q).sum(-1)) - g.neck - vee).astype(np.float32)


def upper_fields(g: Garment, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The sleeve, hem and neckline fields (..., 3) of an upper or outer garment."""
    arm = parts[..., ARMS]
    sleeve = (g.sleeve - along_arm(p)) * 0.42 + (1 - arm)
    hem = p[..., 2] - g.hem + arm
    neck = np.minimum(neck_distance(g, p) if g.neck else 0.615 - p[..., 2], 0.617 - p[..., 2])
    if g.gap:
        neck = np.minimum(neck, np.where(p[..., 1] < -0.02, np.abs(p[..., 0]) - opening(g, p), 1.0))
    return np.stack([sleeve, hem, neck], -1).astype(np.float32)


def opening(g: Garment, p: np.ndarray) -> np.ndarray:
    """Half the width in metres of a garment's open front."""
    return 0.035 + (g.gap - 0.015) * np.clip((0.5 - p[..., 2]) / 0.45, 0, 1.6)


def lower_fields(g: Garment, p: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The waist, hem and (if it is open) front fields (..., 3) of a lower garment."""
    top = (SKIRT_TOP_Z if g.skirted else WAIST_Z) - p[..., 2] - 2 * parts[..., ARMS]
    front = np.where(p[..., 1] < -0.02, np.abs(p[..., 0]) - opening(g, p), 1.0) if g.gap else np.ones_like(top)
    return np.stack([top, p[..., 2] - g.hem, front], -1).astype(np.float32)


def shoe_fields(g: Garment, p: np.ndarray) -> np.ndarray:
    """The fields (..., 3) of a shoe: positive below its top, which is lower over the instep of heels and flat shoes."""
    top = g.hem - p[..., 2]
    if g.kind in ("heels", "flat shoes"):
        top = np.minimum(top, -0.796 - p[..., 2] + 1.2 * np.maximum(-0.145 - p[..., 1], 0.9 * (p[..., 1] + 0.01)))
    if g.kind == "sandals":
        top = np.full_like(top, -1.0)
    return _as_fields(top)


def _as_fields(field: np.ndarray) -> np.ndarray:
    """One field as three fields; the others are 1."""
    return np.stack([field, np.ones_like(field), np.ones_like(field)], -1).astype(np.float32)


@dataclass(frozen=True)
class _Layer:
    """A shell: a sheet with fields (N, 3), offset (N,) along the normals and fold amplitude in metres, and its kind."""

    sheet: Sheet
    fields: np.ndarray
    offset: np.ndarray
    folds: float
    kind: int


def _skirt(model: BodyModel, g: Garment, kind: int) -> _Layer:
    """The shell of a skirt, or of a coat's lower part."""
    p = model.skirt.template
    fall = np.clip((0.1 - p[:, 2]) / 0.6, 0, 1)
    wave = np.sin(max(g.pleats, 7) * np.arctan2(p[:, 0], -p[:, 1] - 0.02))
    widen = g.loose + g.flare * fall + (0.012 if g.pleats else 0.004) * wave * np.clip(3 * fall, 0, 1)
    return _Layer(model.skirt, lower_fields(g, p, model.skirt.parts * 0), widen, 0.003, kind)


def _trunk(model: BodyModel, g: Garment, kind: int, inner: float) -> list[_Layer]:
    """The shells of an upper or outer garment with collar and lapels; `inner` is the looseness of the garment below."""
    cloth, z = model.cloth, model.cloth.template[:, 2]
    fields = upper_fields(g, cloth.template, cloth.parts)
    tight = np.clip((z - g.hem) / 0.08, 0, 1) * 0.35 + 0.65 if g.hem > 0.08 else 1.0
    cuff = 1 - 0.3 * np.clip(1 - (g.sleeve - along_arm(cloth.template)) / 0.07, 0, 1) * (cloth.parts[:, ARMS] > 0.5)
    hang = max(inner + 0.006 - g.loose, 0.0) * np.clip((0.17 - z) / 0.07, 0, 1) * (g.hem < 0.08)
    layers = [_Layer(cloth, fields, g.loose * tight * cuff + hang, 0.25 * g.loose, kind)]
    if g.kind == "coat":
        layers.append(_skirt(model, g, kind))
    if g.collared:
        far, x = neck_distance(g, cloth.template), np.abs(cloth.template[:, 0])
        front = cloth.template[:, 1] < -0.03
        reach = 0.036 + 0.03 * front * np.clip(1 - x / 0.07, 0, 1)
        edge = np.minimum(0.619 - z, np.where(front, x - (opening(g, cloth.template) if g.gap else 0.004), 1.0))
        collar = np.stack([far + 0.012, reach - far, edge], 1).astype(np.float32)
        layers.append(_Layer(cloth, collar, np.full(len(z), g.loose + 0.006), 0.0, kind))
        if g.gap:
            lapel = np.stack([x - opening(g, cloth.template), opening(g, cloth.template) + 0.11 * (z - 0.22) - x,
                              np.where(front, z - 0.22, -1.0)], 1)  # fmt: skip
            layers.append(_Layer(cloth, lapel.astype(np.float32), np.full(len(z), g.loose + 0.0045), 0.0, kind))
    return layers


def _layers(model: BodyModel, who: Identity) -> list[_Layer]:
    """All shells of a person, from the skin outwards."""
    cloth, z, feet = model.cloth, model.cloth.template[:, 2], model.body
    layers = [
        _Layer(sheet, np.ones((len(sheet.template), 3), np.float32), np.zeros(len(sheet.template)), 0.0, kind)
        for sheet, kind in ((model.body, BODY), (model.eyes, EYES), (model.teeth, TEETH))
    ]
    down = np.clip((HIP_Z - z) / (HIP_Z - ANKLE_Z), 0, 1)
    if who.lower.skirted:
        layers.append(_skirt(model, who.lower, LOWER))
    else:
        widen = who.lower.loose * np.clip(1 - (z - 0.02) / 0.12, 0.35, 1) + who.lower.flare * down
        fields = lower_fields(who.lower, cloth.template, cloth.parts)
        layers.append(_Layer(cloth, fields, widen, 0.2 * who.lower.loose + 0.001, LOWER))
    layers += _trunk(model, who.upper, UPPER, who.lower.loose)
    if who.outer is not None:
        layers += _trunk(model, who.outer, OUTER, who.lower.loose + 0.008)
    sheet = cloth if who.shoes.kind in ("boots", "sneakers", "leather shoes") else feet
    grow = who.shoes.loose * (1.0 if sheet is cloth else 0.5) * np.ones(len(sheet.template))
    fields = np.where(sheet.parts[:, [FEET]] + sheet.parts[:, [3]] > 0.5, shoe_fields(who.shoes, sheet.template), -1.0)
    layers.append(_Layer(sheet, fields.astype(np.float32), grow, 0.0, SHOES))
    return layers + _straps(model, who) + _head_layers(model, who)


def _straps(model: BodyModel, who: Identity) -> list[_Layer]:
    """The straps of bags, which are bands of a shell over all clothes."""
    p = model.cloth.template
    trunk = (0.14 - along_arm(p)) * 0.42 + 1 - model.cloth.parts[:, ARMS]
    over = (who.outer.loose + 0.012 if who.outer else who.upper.loose + 0.006) * np.ones(len(p))
    layers = []
    for thing in who.things:
        if thing.kind == "backpack":
            x = np.abs(p[:, 0]) - 0.35 * np.clip(0.42 - p[:, 2], 0, 1)  # turning to the sides below the armpits
            low = np.minimum(p[:, 2] - 0.27, trunk)
            layers.append(_Layer(model.cloth, np.stack([x - 0.078, 0.113 - x, low], 1), over, 0.0, STRAP))
        if thing.kind == "shoulder bag":
            slope = np.array([-0.62 * thing.side, 0.0, -0.78])  # from the other shoulder down to the bag's side
            far = (p - np.array([0.0, 0.0, 0.33])) @ np.array([slope[2], 0, -slope[0]])
            low = np.minimum(p[:, 2] - 0.03, np.where(p[:, 0] * thing.side > 0.1, 0.2 - p[:, 2], trunk))
            layers.append(_Layer(model.cloth, np.stack([far + 0.015, 0.015 - far, low], 1), over, 0.0, STRAP))
    return layers


def _head_layers(model: BodyModel, who: Identity) -> list[_Layer]:
    """The shells of hair and full beard."""
    body, hair, layers = model.body, who.hair, []
    head = body.parts[:, HEAD] > 0.5
    if hair.style not in ("bald", "shaved"):
        inside = np.where(head, scalp_field(hair, body.template), -1.0).astype(np.float32)
        rise = np.clip(inside / 0.05, 0, 1) ** 0.7
        p = body.template
        lump = 1 + 0.12 * noise(1, p[:, 0] * 1.7 + 0.01 * hair.seed, p[:, 2] * 1.7 + p[:, 1])
        flat = 0.25 if who.hat else 1.0
        layers.append(_Layer(body, _as_fields(inside), 0.002 + hair.volume * rise * lump * flat, 0.0, HAIR))
    if hair.beard == 1.0:
        inside = np.where(head, beard_field(hair, body.template), -1.0)
        grow = 0.0006 + 0.004 * np.clip(inside / 0.015, 0, 1)
        layers.append(_Layer(body, _as_fields(inside), grow, 0.0, HAIR))
    return layers


def _buried(who: Identity, layer: _Layer) -> np.ndarray:
    """Which vertices of a layer are skin so far inside close-fitting clothes that they are never visible: bool (N,)."""
    p, parts = layer.sheet.template, layer.sheet.parts
    if layer.kind != BODY:
        return np.zeros(len(p), bool)
    covered = upper_fields(who.upper, p, parts).min(1) > 0.035
    if who.shoes.kind not in ("heels", "flat shoes"):
        covered |= shoe_fields(who.shoes, p).min(1) > 0.02
    if not who.lower.skirted:
        covered |= lower_fields(who.lower, p, parts).min(1) > 0.035
    return covered


class _Builder:
    """Collects the arrays of a `Dressed`.

    Args:
        columns: number of vertices of the base mesh.
    """

    def __init__(self, columns: int) -> None:
        self.rows: dict[str, list] = {name: [] for name in Dressed.__dataclass_fields__}
        self.count, self.columns = 0, columns

    def add(
        self,
        source: sp.csr_matrix,
        faces: np.ndarray,
        kind: int,
        template: np.ndarray,
        parts: np.ndarray,
        fields: np.ndarray | None = None,
        offset: np.ndarray | float = 0.0,
        folds: float = 0.0,
        shift: np.ndarray | None = None,
        core: sp.csr_matrix | None = None,
    ) -> None:
        """Add vertices and their faces, which are numbered from 0; see `Dressed` for the arguments."""
        n = len(template)
        rows: dict[str, object] = {
            "source": source,
            "faces": faces.astype(np.int32) + self.count,
            "kind": np.full(len(faces), kind, np.int16),
            "template": template.astype(np.float32),
            "parts": np.broadcast_to(parts, (n, 5)).astype(np.float32),
            "fields": np.ones((n, 3), np.float32) if fields is None else fields.astype(np.float32),
            "offset": np.broadcast_to(offset, n).astype(np.float32),
            "folds": np.full(n, folds, np.float32),
            "shift": np.zeros((n, 3), np.float32) if shift is None else shift.astype(np.float32),
        }
        if core is not None:
            rows |= {"core": core, "cored": np.arange(n) + self.count}
        for name, row in rows.items():
            self.rows[name].append(row)
        self.count += n

    def dressed(self, pieces: list[Piece]) -> Dressed:
        """The mesh of all that was added; the last things added must be these pieces."""
        gloss = np.array(
            [_GLOSS.get(kind, (0.0, 1.0)) for kind in range(PIECE)] + [p.gloss for p in pieces], np.float32
        )
        rows = self.rows
        none = sp.csr_matrix((0, self.columns), dtype=np.float32)
        joined = {
            name: np.concatenate(rows[name])
            for name in ("shift", "offset", "folds", "faces", "kind", "fields", "template", "parts")
        }
        return Dressed(
            source=sp.vstack(rows["source"]).tocsr(),
            core=sp.vstack([none, *rows["core"]]).tocsr(),
            cored=np.concatenate([np.zeros(0, np.int64), *rows["cored"]]),
            pieces=tuple(piece.cloth for piece in pieces),
            gloss=gloss,
            **joined,
        )


_ONEHOT = np.concatenate([np.eye(5, dtype=np.float32), np.zeros((1, 5), np.float32)])  # the last row is no part


def _add_cards(builder: _Builder, model: BodyModel, cards: Cards | None, frame: str) -> None:
    """Add cards of hair, which follow the head, and gradually the chest below the chin."""
    if cards is None:
        return

    def attached(points: np.ndarray) -> sp.csr_matrix:
        head = np.clip((cards.vertices[:, 2] - 0.5) / 0.14, 0, 1)
        rows = sp.diags(head) @ model.attach(frame, points)
        low = sp.diags(1 - head) @ model.attach("chest", points)
        return (rows + low).tocsr()

    builder.add(attached(cards.vertices), cards.faces, CARDS, cards.chart, _ONEHOT[HEAD], core=attached(cards.core))


def _sole_outline(model: BodyModel) -> np.ndarray:
    """The outline (n, 3) of the left sole on the template, in order."""
    from scipy.spatial import ConvexHull

    p = model.body.template
    foot = p[(p[:, 2] < -0.79) & (p[:, 0] > 0)]
    ring = foot[ConvexHull(foot[:, :2]).vertices]
    closed = np.concatenate([ring, ring[:1]])
    far = np.concatenate([[0], np.linalg.norm(np.diff(closed[:, :2], axis=0), axis=1).cumsum()])
    even = np.linspace(0, far[-1], 40, endpoint=False)
    return np.stack([np.interp(even, far, closed[:, i]) for i in range(3)], 1)


def _pieces(model: BodyModel, who: Identity) -> list[Piece]:
    """The meshes of accessories, hood and soles."""
    pieces = [piece for thing in who.things for piece in build(thing)]
    hooded = who.outer if who.outer and who.outer.kind == "zip hoodie" else who.upper
    if hooded.kind in ("hoodie", "zip hoodie"):
        pieces.append(hood(hooded.cloth))
    if who.shoes.trim is not None:
        thick = {"sneakers": 0.016, "boots": 0.016, "sandals": 0.01, "leather shoes": 0.009}.get(who.shoes.kind, 0.004)
        heel = {"heels": HEEL, "boots": 0.012, "leather shoes": 0.012}.get(who.shoes.kind, 0.0)
        pieces += soles(_sole_outline(model), who.shoes.trim, thick, heel)
    return pieces


HEEL = 0.05  # metres that high heels raise the heel


def dress(model: BodyModel, who: Identity) -> Dressed:
    """The mesh of a dressed person, with all layers but without faces on which a field is negative everywhere."""
    builder = _Builder(len(model.template))
    for layer in _layers(model, who):
        corners = layer.sheet.faces
        deepest = np.maximum.reduce([layer.fields[corners[:, i]] for i in range(3)])
        exists = (deepest > 0).all(1) & (~_buried(who, layer)[corners]).any(1)
        used, local = np.unique(corners[exists], return_inverse=True)
        parts = _ONEHOT[HEAD] if layer.kind in (HAIR, TEETH) else layer.sheet.parts[used]
        parts = _ONEHOT[TORSO] if layer.kind == STRAP else parts
        offset = np.broadcast_to(layer.offset, len(layer.fields))[used]
        builder.add(layer.sheet.source[used], local.reshape(-1, 3), layer.kind, layer.sheet.template[used], parts,
                    layer.fields[used], offset, layer.folds)  # fmt: skip
    p = model.body.template[model.body.parts[:, HEAD] > 0.5]
    _add_cards(builder, model, hair_cards(who.hair, p[scalp_field(who.hair, p) > 0.002], who.hat is not None), "head")
    _add_cards(builder, model, beard_cards(who.hair, p[beard_field(who.hair, p) > 0.0]), "jaw")
    pieces = _pieces(model, who)
    for number, piece in enumerate(pieces):
        if piece.pivot is None:
            source, shift = model.attach(piece.frame, piece.vertices), None
        else:
            source, shift = (
                model.attach(piece.frame, np.broadcast_to(piece.pivot, piece.vertices.shape)),
                piece.vertices,
            )
        chart = np.concatenate([piece.chart, np.zeros((len(piece.chart), 1))], 1)
        builder.add(source, piece.faces, PIECE + number, chart[:, [0, 2, 1]], _ONEHOT[piece.part], shift=shift)
    return builder.dressed(pieces)


def wear(who: Identity, rotations: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adapt a pose (see `BodyModel.pose`) to things: fingers close around a held thing, high heels raise the foot."""
    out = dict(rotations)
    for thing in who.things:
        if thing.slot == "hand":
            side, sign = ("L", 1.0) if thing.side > 0 else ("R", -1.0)
            bend = 0.75 if thing.kind in ("phone", "cup", "bottle") else 0.45 if thing.kind == "book" else 1.05
            for finger in range(2, 6):
                for joint, share in ((1, 0.8), (2, 1.0), (3, 0.7)):
                    out[f"finger{finger}-{joint}.{side}"] = rotation(np.array([0, sign * bend * share, 0]))
    if who.shoes.kind == "heels":
        for side in "LR":
            out[f"foot.{side}"] = out.get(f"foot.{side}", np.eye(3)) @ rotation(np.array([0.36, 0, 0]))
            for toe in range(1, 6):
                out[f"toe{toe}-1.{side}"] = rotation(np.array([-0.36, 0, 0]))
    return out


def drape(dressed: Dressed, vertices: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The vertices and unit normals (N, 3) of a dressed mesh over a posed base mesh.

    Args:
        dressed: the mesh.
        vertices: (19158, 3), vertices of the posed base mesh.
        seed: seed of the folds.
    """
    surface = dressed.source @ vertices + dressed.shift
    normals = vertex_normals(surface, dressed.faces)
    p = dressed.template
    phase = 0.137 * (seed % 997)
    fold = noise(2, p[:, 0] * 1.3 + 0.4 * p[:, 1] + phase, p[:, 2] * 0.9 + 0.8 * np.abs(p[:, 0]))
    fold += 0.5 * noise(1, p[:, 0] * 1.1 + phase, p[:, 2] * 1.6 + p[:, 1])
    moved = surface + normals * (dressed.offset + dressed.folds * np.clip(fold, -2, 2))[:, None]
    normals = vertex_normals(moved, dressed.faces)
    if len(dressed.cored):
        away = moved[dressed.cored] - dressed.core @ vertices
        normals[dressed.cored] = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    return moved.astype(np.float32), normals


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (N, 3) of a mesh's vertices."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)
    normals = np.stack([np.bincount(faces.ravel(), np.repeat(area[:, i], 3), len(vertices)) for i in range(3)], 1)
    return (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)).astype(np.float32)
