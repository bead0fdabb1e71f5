"""Who synthetic people are and what they wear: variety by seed, words, and things that stay where they belong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("anny")
pytest.importorskip("warp")
from scipy.spatial.transform import Rotation

from diffbody_ref.data.synthetic import clothing, hair
from diffbody_ref.data.synthetic import pieces as meshes
from diffbody_ref.data.synthetic.accessories import Thing
from diffbody_ref.data.synthetic.body import body_model
from diffbody_ref.data.synthetic.cast import generator
from diffbody_ref.data.synthetic.paint import person_albedo
from diffbody_ref.data.synthetic.textures import material, named_colour
from diffbody_ref.data.synthetic.wardrobe import Identity, random_identity
from diffbody_ref.ops import keypoints as kp

IDENTITIES = 20_000


def _thing(kind: str, slot: str, side: int = 1, shape: float = 0.2) -> Thing:
    rng = generator(0)
    cloth = material(rng, "plain", [named_colour(rng, "red")], 0.1, 0.0)
    return Thing(kind, f"a {kind}", slot, cloth, cloth, shape, 1.0, side)


def _wearing(*things: Thing, seed: int = 3) -> Identity:
    return replace(random_identity(generator(0, seed)), things=things)


@pytest.fixture(scope="module")
def people() -> list[Identity]:
    return [random_identity(generator(11, number)) for number in range(IDENTITIES)]


def _outfit(who: Identity) -> tuple[str, ...]:
    return (
        who.look,
        who.hair.words,
        who.face_words(True),
        who.upper_words,
        who.lower.words,
        who.shoes.words,
        who.hand_words,
    )


def test_twenty_thousand_seeds_are_as_many_people(people: list[Identity]) -> None:
    # A face is 29 features and a body 9 numbers: no two may agree even to one digit after the point.
    bodies = {tuple(np.round([*who.phenotype.values(), *who.features.values()], 1)) for who in people}
    assert len(bodies) == IDENTITIES
    # Words are coarser, yet nearly every outfit is the only one of its kind; garments alone come in thousands.
    assert len({_outfit(who) for who in people}) > 0.98 * IDENTITIES
    assert len({who.upper_words for who in people}) > 5000
    assert len({who.hair.words for who in people}) > 80


def test_every_kind_is_worn_by_some(people: list[Identity]) -> None:
    kinds: Counter[str] = Counter()
    for who in people:
        kinds.update([who.upper.kind, who.lower.kind, who.shoes.kind, who.hair.style])
        kinds.update([thing.kind for thing in who.things] + ([who.outer.kind] if who.outer else []))
    wanted = ["t-shirt", "shirt", "sweater", "hoodie", "polo shirt", "tank top", "dress", "skirt", "jeans", "trousers"]
    wanted += ["shorts", "leggings", "jacket", "blazer", "coat", "cardigan", "sneakers", "boots", "heels", "sandals"]
    wanted += ["glasses", "sunglasses", "cap", "beanie", "brimmed hat", "scarf", "backpack", "shoulder bag", "phone"]
    wanted += ["cup", "bottle", "umbrella", "book", "handbag", "shopping bag", "earrings", *hair.STYLES]
    rare = {kind: kinds[kind] for kind in wanted if kinds[kind] < 0.005 * IDENTITIES}
    assert not rare


def test_words_name_what_is_worn_and_held(people: list[Identity]) -> None:
    for who in people[:500]:
        said = " ".join(words for words in _outfit(who) if words)
        for thing in who.things:
            assert thing.words in said
        assert who.upper.words in who.upper_words
        if who.outer is not None:
            assert who.upper_words.startswith(f"{who.outer.words} over ")
        hidden = [thing.words for thing in who.things if thing.slot == "face"]
        assert not any(words in who.face_words(False) for words in hidden)
        assert "  " not in said


def test_attached_points_follow_a_rigid_move_exactly() -> None:
    model = body_model()
    points = generator(1).normal([0, 0, 0.7], 0.2, (20, 3))
    turn, shift = Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix(), np.array([0.4, -1.0, 2.0])
    for frame in model.frames:
        matrix = model.attach(frame, points)
        np.testing.assert_allclose(matrix @ model.template, points, atol=2e-4)  # float32 weights of a few units
        np.testing.assert_allclose(matrix @ (model.template @ turn.T + shift), points @ turn.T + shift, atol=2e-3)


def _placed(who: Identity, rotations: dict[str, np.ndarray]) -> tuple[np.ndarray, clothing.Dressed, np.ndarray]:
    """Vertices of the posed person's pieces, the mesh, and keypoints."""
    model = body_model()
    mesh = clothing.dress(model, who)
    posed = model.pose(who.phenotype, clothing.wear(who, rotations), who.features)
    vertices, _ = clothing.drape(mesh, posed.vertices, 0)
    return vertices, mesh, posed.keypoints


def _of(vertices: np.ndarray, mesh: clothing.Dressed, *pieces: int) -> np.ndarray:
    return vertices[np.unique(mesh.faces[np.isin(mesh.kind, clothing.PIECE + np.array(pieces))])]


@pytest.mark.parametrize("kind", ["cup", "bottle", "umbrella", "handbag", "shopping bag"])
def test_what_hangs_stays_upright_in_the_hand(kind: str) -> None:
    who = _wearing(_thing(kind, "hand"))
    raised = {"upperarm01.L": Rotation.from_rotvec([0, -1.4, 0]).as_matrix()}
    low, mesh, _ = _placed(who, {})
    high, _, points = _placed(who, raised)
    before, after = _of(low, mesh, 0, 1), _of(high, mesh, 0, 1)
    np.testing.assert_allclose(np.ptp(after, axis=0), np.ptp(before, axis=0), atol=1e-4)
    assert after[:, 2].max() > before[:, 2].max() + 0.2
    knuckles = points[kp.LEFT_HAND][[5, 9, 13, 17]].mean(0)
    assert np.linalg.norm(after - knuckles, axis=1).min() < 0.06


@pytest.mark.parametrize("kind", ["phone", "book"])
def test_what_is_gripped_turns_with_the_hand(kind: str) -> None:
    who = _wearing(_thing(kind, "hand", side=-1))
    for swing in (0.0, 1.5):
        arm = {"upperarm01.R": Rotation.from_rotvec([-swing, 0, 0]).as_matrix()}
        vertices, mesh, points = _placed(who, arm)
        palm = points[kp.RIGHT_HAND][[0, 5, 17]].mean(0)
        assert np.linalg.norm(_of(vertices, mesh, 0).mean(0) - palm) < 0.08


def test_fingers_close_around_what_is_held_only() -> None:
    who = _wearing(_thing("bottle", "hand", side=-1))
    rotations = clothing.wear(who, {})
    assert any(bone.endswith(".R") for bone in rotations)
    assert not any(bone.endswith(".L") and bone.startswith("finger") for bone in rotations)
    model = body_model()
    hands = [model.pose({}, pose).keypoints[kp.RIGHT_HAND] for pose in ({}, rotations)]
    spread = [np.linalg.norm(hand[12] - hand[0]) for hand in hands]  # the middle finger's tip to the wrist
    assert spread[1] < spread[0] - 0.02


@pytest.mark.parametrize("turn", [[0, 0, 0.8], [0.5, 0, 0], [0, 0.4, -0.6]])
@pytest.mark.parametrize("seed", [1, 6])
def test_glasses_sit_before_the_eyes_of_any_head(turn: list[float], seed: int) -> None:
    who = _wearing(_thing("sunglasses", "face"), seed=seed)
    vertices, mesh, points = _placed(who, {"head": Rotation.from_rotvec(turn).as_matrix()})
    nose = points[kp.FACE][30]
    for eye in ("left_eye", "right_eye"):
        lens = _of(vertices, mesh, 1)
        nearest = lens[np.linalg.norm(lens - points[kp.INDEX[eye]], axis=1).argmin()]
        assert np.linalg.norm(nearest - points[kp.INDEX[eye]]) < 0.035
        ears = (points[kp.INDEX["left_ear"]] + points[kp.INDEX["right_ear"]]) / 2
        ahead = (nose - ears) / np.linalg.norm(nose - ears)
        assert (nearest - points[kp.INDEX[eye]]) @ ahead > 0.003


def test_what_is_worn_is_a_part_and_what_is_carried_is_none() -> None:
    for kind, slot, part in (
        ("cap", "hat", 0),
        ("scarf", "body", 1),
        ("backpack", "body", meshes.NO_PART),
        ("cup", "hand", meshes.NO_PART),
    ):
        assert {piece.part for piece in meshes.build(_thing(kind, slot))} == {part}
    who = _wearing(_thing("cap", "hat"), _thing("cup", "hand"))
    mesh = clothing.dress(body_model(), who)
    hat, cup = (mesh.parts[np.unique(mesh.faces[mesh.kind == clothing.PIECE + i])] for i in (0, 2))
    assert (hat.argmax(1) == 0).all()
    assert (hat.sum(1) == 1).all()
    assert cup.sum() == 0


def test_meshes_of_things_are_closed_in_their_numbers_and_small() -> None:
    kinds = [("glasses", "face"), ("cap", "hat"), ("beanie", "hat"), ("brimmed hat", "hat"), ("scarf", "body")]
    kinds += [
        ("backpack", "body"),
        ("shoulder bag", "body"),
        ("earrings", "face"),
        ("umbrella", "hand"),
        ("book", "hand"),
    ]
    for kind, slot in kinds:
        for piece in meshes.build(_thing(kind, slot)):
            assert np.isfinite(piece.vertices).all()
            assert piece.faces.max() < len(piece.vertices) == len(piece.chart)
            assert np.ptp(piece.vertices, axis=0).max() < 1.0
            assert len(piece.faces) < 2500


@pytest.mark.parametrize("style", [s for s in hair.STYLES if s not in ("bald", "shaved")])
def test_hair_grows_from_the_scalp_and_leaves_the_face_free(style: str) -> None:
    people = (random_identity(generator(5, number)).hair for number in range(2000))
    drawn = next(h for h in people if h.style == style and not h.fringe)
    template = body_model().body.template
    scalp = template[(hair.scalp_field(drawn, template) > 0.002) & (template[:, 2] > 0.6)]
    cards = hair.hair_cards(drawn, scalp, flat=False)
    assert cards is not None
    assert np.isfinite(cards.vertices).all()
    inside = np.linalg.norm((cards.vertices - hair.SKULL) / hair.SKULL_RADII, axis=1) < 0.85
    assert inside.mean() < 0.02
    x, y, z = cards.vertices.T
    face = (np.abs(x) < 0.045) & (y < -0.11) & (z > 0.63) & (z < 0.76)
    assert face.mean() < 0.01
    if style in ("long", "wavy"):
        assert z.min() < 0.6  # over the shoulders
    if style in ("short", "spiky", "bun"):
        assert z.min() > 0.6


def test_an_open_jacket_shows_the_front_only() -> None:
    who = next(
        w for w in (random_identity(generator(2, n)) for n in range(200)) if w.outer and w.outer.kind == "blazer"
    )
    assert who.outer is not None
    trunk = np.zeros((2, 5))
    spots = np.array([[0.0, -0.15, 0.35], [0.0, 0.05, 0.35]])
    open_front, back = clothing.upper_fields(who.outer, spots, trunk).min(1)
    assert open_front < 0 < back
    assert (clothing.upper_fields(who.upper, spots, trunk).min(1) > 0).all()  # what is under it covers both


def test_paint_is_a_reflectance_for_everyone() -> None:
    model = body_model()
    for number in range(12):
        who = random_identity(generator(8, number))
        mesh = clothing.dress(model, who)
        face = generator(number).integers(len(mesh.faces), size=4000)
        middle = mesh.faces[face]
        colour = person_albedo(who, mesh, mesh.kind[face], mesh.template[middle].mean(1), mesh.parts[middle].mean(1))
        assert np.isfinite(colour).all()
        assert colour.min() >= 0
        assert colour.max() <= 1.6  # stitches and catchlights are brighter than cloth
        assert mesh.kind.max() < len(mesh.gloss) == clothing.PIECE + len(mesh.pieces)


def test_a_smile_raises_the_corners_of_the_mouth() -> None:
    model = body_model()
    smile = {"mouthSmileLeft": 0.9, "mouthSmileRight": 0.9}
    calm, glad = (model.pose({}, {}, {}, e).keypoints[kp.FACE] for e in ({}, smile))
    for corner in (48, 54):
        assert glad[corner, 2] > calm[corner, 2] + 0.002
    np.testing.assert_allclose(glad[27], calm[27], atol=2e-3)  # the bridge of the nose stays


def test_features_change_the_face_and_nothing_below() -> None:
    model = body_model()
    plain = model.pose({}, {}).vertices
    shaped = model.pose({}, {}, {"nose-scale-horiz-incr": 0.7, "chin-width-incr": -0.7}).vertices
    moved = np.linalg.norm(shaped - plain, axis=1)
    assert moved[model.template[:, 2] > 0.6].max() > 0.001
    assert moved[model.template[:, 2] < 0.4].max() < 1e-3  # anny moves a little of all
