"""`import diffbody`: light, and the same pictures as the runtime's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diffbody
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import read_image
from diffbody_ref.ops.options import PRESETS

SLOW = ("numpy", "PIL", "onnxruntime", "torch", "diffusers", "transformers", "typer", "rich")
QUICK: dict[str, Any] = {"num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def model() -> diffbody.Restorer:
    return diffbody.load()


def test_importing_is_cheap() -> None:
    """In a fresh interpreter, as here other tests have imported everything."""
    script = (
        "import sys, diffbody\n"
        "assert callable(diffbody.load) and callable(diffbody.restore) and diffbody.__version__\n"
        f"print([name for name in {SLOW!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "[]\n"


def test_all_names_are_there() -> None:
    assert set(diffbody.__all__) <= set(dir(diffbody))
    for name in diffbody.__all__:
        assert getattr(diffbody, name) is not None
    with pytest.raises(AttributeError, match="'diffbody' has no attribute 'nothing'"):
        diffbody.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_path_an_array_and_a_pil_picture_give_the_same(
    photo: Path, pixels: np.ndarray, model: diffbody.Restorer
) -> None:
    wanted = model.restore(pixels, **QUICK).pixels
    for image in (photo, str(photo), pixels, Image.open(photo)):
        result = model.restore(image, **QUICK)
        np.testing.assert_array_equal(result.pixels, wanted)
        assert result.alpha is None
        assert result.pixels.dtype == np.float32
        assert result.image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(result.image), np.rint(wanted * 255).astype(np.uint8))
        assert result.intermediates.regression.shape == wanted.shape
        assert result.notices == []


def test_one_call_does_it_all(photo: Path, model: diffbody.Restorer) -> None:
    wanted = model.restore(photo, **QUICK).pixels
    np.testing.assert_array_equal(diffbody.restore(photo, **QUICK).pixels, wanted)
    single = diffbody.restore(photo, model=NANO_FOLDER, config=diffbody.EngineConfig(low_memory=True), **QUICK)
    np.testing.assert_array_equal(single.pixels, wanted)


def test_transparency_stays(tmp_path: Path, pixels: np.ndarray, model: diffbody.Restorer) -> None:
    alpha = np.zeros(pixels.shape[:2], np.float32)
    alpha[:24] = 1.0
    image = Image.fromarray(np.rint(np.dstack([pixels, alpha]) * 255).astype(np.uint8))
    result = model.restore(image, **QUICK)
    assert result.image.mode == "RGBA"
    assert result.alpha is not None
    assert result.alpha.shape == result.pixels.shape[:2]
    height = len(result.alpha)
    assert (result.alpha[: height // 2 - 10] == 1).all()
    assert (result.alpha[height // 2 + 10 :] == 0).all()
    result.save(tmp_path / "cut.png")
    found = read_image(tmp_path / "cut.png")
    assert found.alpha is not None
    np.testing.assert_allclose(found.alpha, result.alpha, atol=0.51 / 255)
    with pytest.raises(ValueError, match="exists"):
        result.save(tmp_path / "cut.png")
    result.save(tmp_path / "cut.png", overwrite=True)


def test_a_model_says_what_its_defaults_are(model: diffbody.Restorer) -> None:
    assert model.settings == PRESETS["nano"]


def test_each_step_is_told(photo: Path, model: diffbody.Restorer) -> None:
    steps = []
    model.restore(photo, num_inference_steps=4, strength=1.0, callback=lambda done: steps.append(done.step))
    assert steps == [0, 1, 2, 3]


def test_errors_are_one_line(photo: Path, tmp_path: Path, model: diffbody.Restorer) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for call, named in (
        (lambda: model.restore(tmp_path / "none.png"), "none.png: no such file"),
        (lambda: model.restore(text), "text.png: not a picture"),
        (lambda: model.restore(np.zeros((48, 40), np.float32)), r"float \(H, W, 3\)"),
        (lambda: model.restore(photo, stepz=3), "unknown option 'stepz'"),
        (lambda: model.restore(photo, num_inference_steps=0), "num_inference_steps"),
        (lambda: model.restore(photo, seed=-1), "seed"),
        (lambda: diffbody.load("mega"), "unknown model 'mega'"),
        (lambda: diffbody.load(tmp_path), "not a bundle"),
        (lambda: diffbody.load(config=diffbody.EngineConfig(engine="steam")), "steam"),
    ):
        with pytest.raises(ValueError, match=named) as caught:
            call()
        assert "\n" not in str(caught.value)
