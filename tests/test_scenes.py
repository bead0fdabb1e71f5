"""Synthetic scenes: joints against anny's, solids and blur against closed forms, labels against what stands before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("anny")
pytest.importorskip("warp")

from diffbody_ref.data.synthetic import finish, labels, solids, surfaces
from diffbody_ref.data.synthetic.body import ARMS, body_model
from diffbody_ref.data.synthetic.cast import Actor, actor, companions, generator
from diffbody_ref.data.synthetic.places import KINDS
from diffbody_ref.data.synthetic.places.props import occluders, support, unobstructed
from diffbody_ref.data.synthetic.render import SAMPLES, render
from diffbody_ref.data.synthetic.scene import CROPS, Camera, Place, random_camera
from diffbody_ref.data.synthetic.shading import Shot, scene_of
from diffbody_ref.data.synthetic.skeleton import Rotations, Skeleton
from diffbody_ref.data.synthetic.surfaces import surface
from diffbody_ref.ops import keypoints as kp

LEFT_WRIST, RIGHT_WRIST = kp.LEFT_HAND.start, kp.RIGHT_HAND.start  # the bones' heads


def _camera(distance: float = 4.0) -> Camera:
    """Sees the person's whole front, level, at 128 × 64 pixels."""
    axes = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    return Camera(np.array([0, -distance, 0.95]), axes, 60.0 * distance, np.array([31.5, 63.5]))


def _grey() -> surfaces.Surface:
    return surface(generator(0), "plain", (128, 128, 128))


def _place(things: list[solids.Solid]) -> Place:
    place = KINDS["studio"](generator(0), _camera())
    return replace(place, solids=things)


@pytest.fixture(scope="module")
def people() -> list[Actor]:
    return [actor(5, number, generator(5, number, 1)) for number in range(14)]


@pytest.fixture(scope="module")
def standing() -> Actor:
    return actor(0, 2, generator(1), seated=False)


def _parts(shot: Shot, camera: Camera) -> np.ndarray:
    rays = camera.rays(128, 64, SAMPLES)
    hits = shot.hits(camera, rays.reshape(-1, 3))
    return labels.part_map(np.where(hits.owner == 0, hits.label, 0).reshape(rays.shape[:2]), SAMPLES)


def test_wrists_come_where_they_are_sent_and_anny_agrees() -> None:
    phenotype = {"gender": 0.3, "height": 0.7}
    bones, out = Skeleton(body_model(), phenotype), Rotations()
    targets = {"L": np.array([0.25, -0.3, 0.4]), "R": np.array([-0.1, -0.25, 0.3])}
    for side, sign in (("L", 1.0), ("R", -1.0)):
        bones.reach_arm(out, side, targets[side], (sign, 0.3, -0.5))
        np.testing.assert_allclose(bones.at(out, f"wrist.{side}"), targets[side], atol=1e-6)
        bones.aim_hand(out, side, np.array([0, -1.0, 0]), np.array([-sign, 0, 0]))
    points = body_model().pose(phenotype, out).keypoints
    gap = points[LEFT_WRIST] - points[RIGHT_WRIST]  # the ground is another, so only differences are the same
    np.testing.assert_allclose(gap, targets["L"] - targets["R"], atol=2e-3)
    fingers = points[kp.INDEX["left_middle_finger1"]] - points[LEFT_WRIST]
    assert fingers[1] / np.linalg.norm(fingers) < -0.98  # forwards, to 11 degrees


def test_a_target_out_of_reach_stretches_the_arm() -> None:
    bones, out = Skeleton(body_model(), {}), Rotations()
    bones.reach_arm(out, "L", np.array([0.2, -5.0, 0.5]), (1, 0, 0))
    shoulder, elbow, wrist = (bones.at(out, f"{name}.L") for name in ("upperarm01", "lowerarm01", "wrist"))
    upper, lower = elbow - shoulder, wrist - elbow
    assert upper @ lower / np.linalg.norm(upper) / np.linalg.norm(lower) > 0.98
    assert wrist[1] < shoulder[1] - 0.45


def test_soles_are_on_the_floor(people: list[Actor]) -> None:
    stances = set()
    for person in people:
        assert person.vertices[:, 2].min() == pytest.approx(0, abs=1e-5)
        heels = person.posed.keypoints[[kp.INDEX["left_heel"], kp.INDEX["right_heel"]], 2]
        stance = person.pose.words.split(" ")[0].strip(",")
        stances.add(stance)
        if stance in ("standing", "sitting", "leaning"):
            assert np.ptp(heels) < 0.03, person.pose.words  # both soles down
            assert heels.max() < (0.16 if person.who.shoes.kind == "heels" else 0.09)
        assert heels.min() < 0.25
    assert len(stances) >= 3


def test_a_seat_carries_the_sitter() -> None:
    for number in range(4):
        person = actor(0, number, generator(7, number), seated=True)
        things, words = support(generator(number), person, outdoors=False)
        assert words.startswith("on a")
        hips = person.posed.keypoints[[kp.INDEX["left_hip"], kp.INDEX["right_hip"]]].mean(0)
        down = np.array([[0, 0, -1.0]])
        face, below, _ = scene_of(things).trace(hips, down)
        assert face[0] >= 0
        assert 0.04 < below[0] < 0.25  # the buttock's thickness
        assert 0.2 < hips[2] - below[0] < 0.65


@pytest.mark.parametrize("radius", [0.0, 0.1])
def test_solids_face_outwards_and_have_their_volume(radius: float) -> None:
    size = (0.6, 0.8, 1.0)
    solid = solids.cushion(size, (1, 2, 3), _grey(), radius, 9) if radius else solids.box(size, (1, 2, 3), _grey())
    a, b, c = (solid.vertices[solid.faces[:, i]] - [1, 2, 3.5] for i in range(3))
    volume = (a * np.cross(b, c)).sum() / 6  # positive only where the faces look outwards
    # A box with edges rounded by r lacks (4 - pi) r^2 along each of its straight edges, and a little at the corners.
    missing = (4 - np.pi) * radius**2 * (sum(size) - 6 * radius) + (8 - 4 / 3 * np.pi) * radius**3
    assert volume == pytest.approx(0.48 - missing, rel=0.03)  # chords of the rounding
    np.testing.assert_allclose(solid.vertices.min(0), [0.7, 1.6, 3.0], atol=1e-9)
    np.testing.assert_allclose(solid.vertices.max(0), [1.3, 2.4, 4.0], atol=1e-9)


@pytest.mark.parametrize("pattern", sorted(surfaces.PATTERNS))
def test_every_surface_is_a_reflectance_and_fades_with_distance(pattern: str) -> None:
    s = surface(generator(2), pattern, (200, 120, 90), (60, 80, 120), (230, 230, 220), scale=0.5)
    u, v = (x.ravel() for x in np.meshgrid(np.linspace(-4, 4, 60), np.linspace(0, 6, 50)))
    near, far = (surfaces.paint(s, u, v, np.full(len(u), size)) for size in (0.001, 5.0))
    assert near.dtype == np.float32
    assert near.min() > 0
    assert near.max() <= 1
    assert far.std(0).max() <= near.std(0).max() + 1e-6


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_places_leave_room_for_the_person(kind: str) -> None:
    for seed in range(3):
        camera = _camera()
        place = KINDS[kind](generator(seed, 3), camera)
        points = np.concatenate([s.vertices for s in place.solids if s.surface.pattern != "leaf"])
        beside = np.hypot(points[:, 0], points[:, 1]) < 0.3
        assert not (beside & (points[:, 2] > 0.05) & (points[:, 2] < 1.8)).any()
        rays = camera.rays(16, 8, 1).reshape(-1, 3)
        assert np.isfinite(place.sky.colour(rays)).all()


@pytest.mark.parametrize("crop", CROPS)
def test_crops_show_the_head_and_end_where_they_say(standing: Actor, crop: str) -> None:
    ends = {CROPS[0]: "", CROPS[1]: "ankle", CROPS[2]: "knee", CROPS[3]: "hip"}[crop]
    trunk = standing.mesh.parts[:, ARMS] < 0.5
    seen = 0
    for seed in range(60):
        camera, _, found = random_camera(generator(seed), standing.vertices, trunk, standing.posed.keypoints, 256, 128)
        if found != crop:
            continue
        seen += 1
        pixels = camera.project(standing.posed.keypoints)
        assert 0 < pixels[0, 1] < 256
        assert -10 < pixels[0, 0] < 138  # a turned head may leave the frame by a little
        if ends:
            assert pixels[kp.INDEX[f"left_{ends}"], 1] > 240
    assert seen >= 2


def test_what_stands_before_a_person_hides_their_keypoints(standing: Actor) -> None:
    camera = _camera()

    def seen(things: list[solids.Solid]) -> np.ndarray:
        shot = Shot([standing], _place(things))
        return labels.keypoints(standing.posed, camera, shot.scene, standing.mesh, 128, 64)[:, 2]

    far, low = solids.box((3, 0.1, 3), (0, 2.0, 0), _grey()), solids.box((3, 0.1, 0.7), (0, -1.0, 0), _grey())
    alone, legs_hidden = seen([far]), seen([far, low])
    knees = [kp.INDEX["left_knee"], kp.INDEX["right_knee"]]
    assert (alone[knees] == 2).all()
    assert (legs_hidden[knees] == 1).all()
    np.testing.assert_array_equal(alone[:7], legs_hidden[:7])  # the head and shoulders are above it
    walls = [solids.box((3, 0.02, 3), (0, -1.0 - 0.05 * i, 0), _grey()) for i in range(8)]
    assert (seen([far, walls[0]]) == 1).all()
    kept = unobstructed([far, *walls, low], standing, camera, 128, 64)
    assert [s.vertices.tolist() for s in kept] == [far.vertices.tolist()]


def test_labels_are_the_main_persons_only(standing: Actor) -> None:
    camera, far = _camera(), [solids.box((3, 0.1, 3), (0, 2.0, 0), _grey())]
    other = actor(0, 4, generator(2), seated=False)
    alone = _parts(Shot([standing], _place(far)), camera)
    behind = _parts(Shot([standing, other.moved(0.25, 1.0, 0.3)], _place(far)), camera)
    np.testing.assert_array_equal(alone, behind)
    before = _parts(Shot([standing, other.moved(0.25, -1.0, 0.3)], _place(far)), camera)
    assert 0 < (before > 0).sum() < 0.9 * (alone > 0).sum()
    np.testing.assert_array_equal(before[before > 0], alone[before > 0])


def test_things_and_companions_hide_some_but_not_most() -> None:
    shown, things, others = [], 0, 0
    for seed in range(24):
        rng = generator(seed, 9)
        person = actor(0, seed % 4, rng, seated=False)
        camera = _camera()
        before = occluders(rng, person, camera, "street")
        company = companions(
            rng, 0, 7, person, camera, scene_of([solids.box((1, 1, 1), (0, 50, 0), _grey())]), "street"
        )
        things, others = things + bool(before), others + bool(company)
        shot = Shot([person, *company], _place([*before, solids.box((9, 0.1, 3), (0, 20, 0), _grey())]))
        seen = labels.keypoints(person.posed, camera, shot.scene, person.mesh, 128, 64)
        shown.append((seen[kp.BODY, 2] == 2).mean())
    assert things >= 3
    assert others >= 5
    assert np.mean(shown) > 0.5


def test_far_lights_become_discs_and_the_person_keeps_their_edge() -> None:
    height, width, radius = 64, 32, 5.0
    colour = np.zeros((height, SAMPLES, width, SAMPLES, 3), np.float32)
    depth = np.full(colour.shape[:4], 1e6, np.float32)
    subject = np.zeros(colour.shape[:4], bool)
    subject[:, :, 20:] = True
    depth[:, :, 20:] = 2.0
    colour[32, :, 8] = 1.0  # a lamp at infinity
    colour[:, :, 20:] = 5.0
    out = finish.expose_lens(colour, depth, subject, 2.0, radius / height)
    np.testing.assert_allclose(out[:, 20:], 5.0, rtol=1e-5)
    assert out[:, 15:20].max() < 0.01  # nothing of the bright person behind them
    lit = np.argwhere(out[:, :20, 0] > 0.25 / (np.pi * radius**2))
    reach = np.hypot(*(lit - [32, 8]).T).max()
    assert abs(reach - radius) <= 1
    assert out[:, :20, 0].sum() == pytest.approx(1.0, rel=0.02)
    sharp = finish.expose_lens(colour, depth, subject, 2.0, 0.0)
    assert sharp[32, 8, 0] == pytest.approx(1.0)


def test_pictures_of_every_kind_of_place_repeat_themselves() -> None:
    places = set()
    for identity in range(4):
        first, again = (render(11, identity, 0, 64, 32) for _ in range(2))
        np.testing.assert_array_equal(first.image, again.image)
        np.testing.assert_array_equal(first.parts, again.parts)
        places.add(first.caption.rsplit(", ", 1)[1])
    assert len(places) > 1
