"""Synthetic people: geometry against closed forms, labels against the picture and against each other, folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("anny")
pytest.importorskip("warp")
from PIL import Image
from scipy.spatial.transform import Rotation

from diffbody_ref.data.synthetic import clothing, skeleton, textures
from diffbody_ref.data.synthetic.body import body_model, catmull_clark, laplacian
from diffbody_ref.data.synthetic.cast import generator
from diffbody_ref.data.synthetic.dataset import contact_sheet, synthesize
from diffbody_ref.data.synthetic.face import template_points
from diffbody_ref.data.synthetic.labels import keypoints
from diffbody_ref.data.synthetic.render import Picture, render
from diffbody_ref.data.synthetic.scene import Camera
from diffbody_ref.data.synthetic.tracing import Scene
from diffbody_ref.data.synthetic.wardrobe import random_identity
from diffbody_ref.ops import keypoints as kp

CUBE = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


def _camera(yaw: float, focal: float = 400.0) -> Camera:
    """Three metres away at 0.9 m, level; yaw 0 sees the person's front."""
    eye = np.array([3 * np.sin(yaw), -3 * np.cos(yaw), 0.9])
    forward = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
    right = np.cross(forward, [0, 0, 1.0])
    return Camera(eye, np.stack([right, [0, 0, -1.0], forward]), focal, np.array([63.5, 127.5]))


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [render(3, identity, 0, 128, 64) for identity in range(6)]


def test_subdivided_cube_has_the_points_of_the_formula() -> None:
    matrix, quads = catmull_clark(CUBE, 8)
    points = matrix @ CORNERS
    assert points.shape == (8 + 12 + 6, 3)
    assert quads.shape == (24, 4)
    # By hand, valence 3: (mean of faces 1/3 + 2 · mean of edges 2/3 + 0 · corner) / 3 = 5/9 of the corner.
    np.testing.assert_allclose(points[:8], CORNERS * 5 / 9, atol=1e-12)
    # An edge point is half its middle (1, 1, 0) and half the mean of two face centres (1/2, 1/2, 0): 3/4.
    np.testing.assert_allclose(np.sort(np.abs(points[8:20]), 1), np.tile([0, 0.75, 0.75], (12, 1)), atol=1e-12)


def test_smoothing_keeps_an_even_border_flat() -> None:
    # A strip of quads: heights 0 on its border only; a point off it must not pull the border out.
    grid = np.arange(12).reshape(3, 4)
    quads = np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], -1).reshape(-1, 4)
    height = np.zeros(12)
    height[5] = 1.0
    smooth = laplacian(quads, 12) @ height
    assert np.abs(np.delete(smooth, [5, 6])).max() == 0
    assert smooth[5] == pytest.approx(0.5)


def test_rotation_is_scipys() -> None:
    vector = np.array([0.4, -1.1, 0.7])
    np.testing.assert_allclose(skeleton.rotation(vector), Rotation.from_rotvec(vector).as_matrix(), atol=1e-12)


def test_rays_go_through_the_pixels_they_are_of() -> None:
    camera = _camera(0.7)
    rays = camera.rays(8, 6, 2)
    points = camera.position + rays * 2.5
    expected = np.stack(np.meshgrid(np.arange(12) / 2 - 0.25, np.arange(16) / 2 - 0.25), -1)
    np.testing.assert_allclose(camera.project(points), expected, atol=2e-3)  # float32 rays, focal 400


def test_ray_meets_a_triangle_where_its_fields_are_positive() -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    behind = corners - [0, 0, 1]
    fields = np.ones((6, 3), np.float32)
    fields[:3, 0] = [0.5, -0.5, 0.5]  # zero at x = 1/2 on the front triangle
    scene = Scene(np.concatenate([corners, behind]), np.array([[0, 1, 2], [3, 4, 5]]), fields)
    origins = np.array([[0.2, 0.3, 2], [0.7, 0.1, 2], [0.9, 0.9, 2]])
    face, depth, weights = scene.trace(origins, np.tile([0, 0, -1.0], (3, 1)))
    assert face.tolist() == [0, 1, -1]
    np.testing.assert_allclose(depth[:2], [2, 3], atol=1e-4)
    np.testing.assert_allclose(weights[:2], [[0.5, 0.2, 0.3], [0.2, 0.7, 0.1]], atol=1e-5)


def test_light_is_blocked_by_what_lies_towards_it() -> None:
    roof = np.array([[-5, -5, 1], [5, -5, 1], [0, 9, 1]], np.float32)
    scene = Scene(roof, np.array([[0, 1, 2]]), np.ones((3, 3)))
    points, up = np.zeros((4, 3)), np.tile([0, 0, 1.0], (4, 1))
    assert scene.shadow(points, up, np.array([0, 0, 1.0]), 0.1, 0).tolist() == [0, 0, 0, 0]
    slanted = np.array([1, 0, 0.05]) / np.hypot(1, 0.05)
    assert scene.shadow(points, up, slanted, 0.0, 0).tolist() == [1, 1, 1, 1]
    assert scene.shadow(points, -up, slanted, 0.0, 0).tolist() == [0, 0, 0, 0]  # faces away


def test_ambient_light_is_the_sky_where_it_is_free_and_the_roofs_colour_under_it() -> None:
    roof = np.array([[-50, -50, 1], [50, -50, 1], [0, 90, 1]], np.float32)
    scene = Scene(roof, np.array([[0, 1, 2]]), np.ones((3, 3)))
    points, up = np.zeros((4000, 3)), np.tile([0, 0, 1.0], (4000, 1))
    sky, ground, none = np.array([0.3, 0.6, 0.9]), np.array([0.1, 0.1, 0.1]), np.zeros(3)
    tint = np.array([[1.0, 0.0, 0.0]])
    free = scene.ambient(points, up, tint, sky, ground, none, up[0], 0.5, 0).mean(0)
    # Cosine-weighted mean of (1 + z) / 2 over the hemisphere: (1 + 2/3) / 2.
    np.testing.assert_allclose(free, ground + (sky - ground) * 5 / 6, atol=0.01)  # 3 sigma of 4000 rays: 0.006
    under = scene.ambient(points, up, tint, sky, ground, none, up[0], 100.0, 0).mean(0)
    assert under[0] > 0.9 * 0.45 * 0.4  # the red roof throws back 0.45 of sky and ground
    assert under[2] < 0.1 * free[2]


def test_noise_tiles_and_has_unit_variance() -> None:
    u, v = generator(0).random((2, 1000), np.float32)
    for kind in range(4):
        np.testing.assert_allclose(textures.noise(kind, u, v), textures.noise(kind, u + 1, v - 2), atol=0.02)  # float32
    np.testing.assert_allclose(textures.noise_bank().std((1, 2)), 1, atol=1e-3)


@pytest.mark.parametrize("pattern", sorted(textures.PATTERNS))
def test_every_pattern_is_a_reflectance(pattern: str) -> None:
    rng = generator(1)
    colours = [textures.named_colour(rng, name) for name in ("red", "white", "navy")]
    cloth = textures.material(rng, pattern, colours, 0.1, 0.1)
    u, v = np.meshgrid(np.linspace(-1, 1, 40, dtype=np.float32), np.linspace(-1, 1, 30, dtype=np.float32))
    colour = textures.albedo(cloth, u, v)
    assert colour.shape == (30, 40, 3)
    assert colour.dtype == np.float32
    assert colour.min() > 0
    assert colour.max() <= 1
    assert colour.std() > 0


def test_identities_differ_and_repeat() -> None:
    people = [random_identity(generator(0, number)) for number in range(30)]
    again = random_identity(generator(0, 7))
    assert again.phenotype == people[7].phenotype
    assert again.upper.words == people[7].upper.words
    assert len({who.upper.words for who in people}) > 15
    assert {who.look.split()[-1] for who in people} >= {"man", "woman"}


def test_left_is_the_persons_left_and_feet_are_below() -> None:
    body = body_model().pose({"gender": 0.5}, {})
    points = dict(zip(kp.NAMES, body.keypoints, strict=True))
    for joint in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "big_toe", "heel"):
        assert points[f"left_{joint}"][0] > 0 > points[f"right_{joint}"][0]  # x points to the person's left
    assert points["nose"][1] < points["left_ear"][1]  # y points backwards
    heights = [points[name][2] for name in ("nose", "left_shoulder", "left_hip", "left_knee", "left_ankle")]
    assert heights == sorted(heights, reverse=True)
    assert np.isfinite(body.keypoints).all()
    assert body.vertices[body_model().body.source.indices, 2].min() == pytest.approx(0, abs=1e-6)


def test_body_is_nearly_its_own_mirror_image() -> None:
    points = body_model().pose({"gender": 0.5}, {}).keypoints
    mirrored = points[kp.FLIP] * [-1, 1, 1]
    # anny's mesh is symmetric; its keypoint regressor and our rays onto the face are to a few millimetres.
    np.testing.assert_allclose(points, mirrored, atol=0.006)


def test_face_points_lie_on_the_front_of_the_head() -> None:
    model = body_model()
    found = np.einsum("kc,kcd->kd", model.face_weights, model.template[model.face_corners])
    np.testing.assert_allclose(found[:, [0, 2]], template_points(), atol=1e-4)
    assert found[:, 1].max() < -0.03  # all in front of the ears
    assert np.linalg.norm(found[30] - [0, -0.168, 0.693]) < 0.005  # the tip of the nose, the foremost point


def test_a_joint_bends_the_right_way() -> None:
    rest = body_model().pose({}, {}).keypoints
    angle = {"upperarm01.L": skeleton.rotation((0, -1.0, 0)), "lowerleg01.R": skeleton.rotation((0.8, 0, 0))}
    bent = body_model().pose({}, angle).keypoints
    wrist, ankle = kp.INDEX["left_wrist"], kp.INDEX["right_ankle"]
    assert bent[wrist, 2] - bent[0, 2] > rest[wrist, 2] - rest[0, 2] + 0.2  # the arm is up
    assert bent[ankle, 1] > rest[ankle, 1] + 0.15  # the heel goes back
    np.testing.assert_allclose(bent[kp.INDEX["left_hip"]] - bent[0], rest[kp.INDEX["left_hip"]] - rest[0], atol=0.02)


@pytest.mark.parametrize(("yaw", "face_seen"), [(0.0, True), (np.pi, False)])
def test_visibility_follows_the_side(yaw: float, face_seen: bool) -> None:
    who = random_identity(generator(0, 25))  # short hair, no hat
    model = body_model()
    mesh = clothing.dress(model, who)
    posed = model.pose(who.phenotype, {})
    vertices, _ = clothing.drape(mesh, posed.vertices, 0)
    scene, camera = Scene(vertices, mesh.faces, mesh.fields), _camera(yaw, 260.0)
    points = keypoints(posed, camera, scene, mesh, 256, 128)
    face = points[[kp.INDEX[name] for name in ("nose", "left_eye", "right_eye")], 2]
    assert (face == (2 if face_seen else 1)).all()
    hips = points[[kp.INDEX["left_hip"], kp.INDEX["right_hip"]]]
    assert (hips[:, 2] == 2).all()
    assert (hips[0, 0] > hips[1, 0]) == face_seen  # the left is on the picture's right from the front
    far = keypoints(posed, _camera(yaw, 2000.0), scene, mesh, 256, 128)
    assert (far[[kp.INDEX["left_ankle"], kp.INDEX["right_ankle"]], 2] == 1).all()  # out of the frame


def test_skin_deep_inside_clothes_is_dropped_and_the_rest_kept() -> None:
    model = body_model()
    mesh = clothing.dress(model, random_identity(generator(0, 25)))
    skin = mesh.faces[mesh.kind == clothing.BODY]
    assert 0.2 < len(skin) / len(model.body.faces) < 0.95
    head = model.body.template[model.body.faces, 2].min(1) > 0.65
    assert (mesh.template[skin, 2].min(1) > 0.65).sum() == head.sum()
    assert mesh.fields[mesh.faces].max(1).min() > 0


def test_pictures_and_labels_line_up(pictures: list[Picture]) -> None:
    names = {"nose": 1, "left_shoulder": 2, "left_wrist": 3, "right_wrist": 3, "left_knee": 4, "left_big_toe": 5}
    checked = 0
    for picture in pictures:
        assert picture.image.shape == (128, 64, 3)
        assert picture.parts.shape == (128, 64)
        assert picture.parts.max() <= 5
        rows, columns = np.nonzero(picture.parts)
        assert picture.box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
        for name, label in names.items():
            x, y, seen = picture.keypoints[kp.INDEX[name]]
            if seen == 2:
                row, column = round(float(y)), round(float(x))
                near = picture.parts[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
                assert label in near or (name == "left_shoulder" and 3 in near)
                checked += 1
    assert checked >= 10


def test_person_stands_out_of_the_background(pictures: list[Picture]) -> None:
    # The part map's outline lies on edges of the picture: the gradient there is well above the picture's mean.
    ratios = []
    for picture in pictures:
        grey = picture.image.astype(float).mean(-1)
        gradient = np.hypot(*np.gradient(grey))
        inside = picture.parts > 0
        outline = inside ^ np.roll(inside, 1, 1)
        ratios.append(gradient[outline].mean() / gradient.mean())
    assert np.mean(ratios) > 1.5


def test_pictures_are_exposed_and_sharp(pictures: list[Picture]) -> None:
    for picture in pictures:
        grey = picture.image.astype(float).mean(-1)
        assert 25 < grey.mean() < 235
        assert np.abs(np.diff(grey, axis=1)).mean() > 1  # texture, not flat areas


def test_render_repeats_itself_and_views_share_the_person() -> None:
    first, again, other = (render(5, 1, view, 64, 32) for view in (0, 0, 1))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.keypoints, again.keypoints)
    assert first.caption.split(",")[:2] == other.caption.split(",")[:2]
    assert (first.image != other.image).mean() > 0.5
    with pytest.raises(ValueError, match="8×64"):
        render(0, 0, 0, 8, 64)


def test_folder_resumes_grows_and_refuses_another_seed(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = synthesize(tmp_path, 2, 1, 4, 32, 16, workers=1, progress=lambda *call: seen.append(call))
    assert (report.pictures, report.rendered) == (2, 2)
    assert seen == [(1, 2, "person 0"), (2, 2, "person 1")]
    lines = (tmp_path / "metadata.jsonl").read_text()
    kept = (tmp_path / "images/000000_0.png").stat().st_mtime_ns
    (tmp_path / "labels/000001.json").unlink()
    again = synthesize(tmp_path, 3, 1, 4, 32, 16, workers=1)
    assert (again.pictures, again.rendered) == (3, 2)
    assert (tmp_path / "images/000000_0.png").stat().st_mtime_ns == kept
    assert (tmp_path / "metadata.jsonl").read_text().startswith(lines)
    record = json.loads(lines.splitlines()[1])
    assert (record["identity"], record["view"]) == (1, 0)
    assert np.array(record["keypoints"]).shape == (133, 3)
    assert Image.open(tmp_path / record["image"]).size == (16, 32)
    assert Image.open(tmp_path / record["parts"]).mode == "L"
    contact_sheet(tmp_path, tmp_path / "sheet.png", 2)
    assert Image.open(tmp_path / "sheet.png").size == (2 * 32, 2 * 64)
    with pytest.raises(ValueError, match=r"\.png or \.jpg"):
        contact_sheet(tmp_path, tmp_path / "sheet.tiff", 2)
    with pytest.raises(ValueError, match="seed 4"):
        synthesize(tmp_path, 3, 1, 5, 32, 16, workers=1)
    with pytest.raises(ValueError, match="views is 0"):
        synthesize(tmp_path, 3, 0, 5)


@pytest.mark.slow
def test_workers_do_not_change_the_pictures(tmp_path: Path) -> None:
    for workers in (1, 2):
        synthesize(tmp_path / str(workers), 3, 1, 4, 32, 16, workers=workers, first_identity=7)
    for file in sorted((tmp_path / "1").rglob("*.png")):
        assert file.read_bytes() == (tmp_path / "2" / file.relative_to(tmp_path / "1")).read_bytes()
    assert (tmp_path / "1/metadata.jsonl").read_text() == (tmp_path / "2/metadata.jsonl").read_text()
