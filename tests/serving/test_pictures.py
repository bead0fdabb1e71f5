"""A served picture is the one that is restored in process."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffbody_ref.ops.images import decode_image, read_image
from runtime.restore import Restorer
from runtime.triton.client import Client, ClientConfig
from runtime.triton.server import Server
from tests.serving.common import PERSON, SAMPLES, WOMAN, in_process, metric, post, tensor, url
from tests.waiting import HANG


@pytest.mark.parametrize(
    "call",
    [
        {"num_inference_steps": 3},
        {"num_inference_steps": 4, "sampler": "dpm++", "guidance_scale": 2.0, "strength": 0.8, "seed": 2**64 - 1},
        {
            "num_inference_steps": 3,
            "sampler": "ddim",
            "prompt": "a woman, Übergröße",
            "negative_prompt": "blurred",
            "guidance_scale": 1.5,
            "upscale": 1.25,
            "colour_fix": "adain",
            "body_guidance_every": 2,
            "body_guidance_start": 900,
            "body_guidance_stop": 10,
            "tile_size": 128,
            "output_format": "webp",
        },
        {
            "num_inference_steps": 2,
            "body_guidance_scale": 0.0,
            "use_structure": False,
            "use_residual": False,
            "output_format": "jpg",
        },
    ],
    ids=["defaults", "dpm++", "everything", "DiffBIR"],
)
def test_a_served_picture_is_the_one_restored_in_process(
    client: Client, restorer: Restorer, call: dict[str, Any]
) -> None:
    answer = client.restore(PERSON, **call)
    assert answer.image == in_process(restorer, read_image(PERSON), **call)
    spans = answer.report.spans
    assert set(spans) >= {"preprocess", "restorer", "pose", "parts", "text_encoder", "vae_encoder", "sampler"}
    assert all(0 <= start <= end for start, end in spans.values())
    assert spans["restorer"][1] <= spans["sampler"][0]
    assert answer.report.people == (1 if call.get("use_structure", True) else 0)


def test_pixels_and_transparency(client: Client, restorer: Restorer) -> None:
    pixels = np.asarray(Image.open(WOMAN).convert("RGB"))
    answer = client.restore(pixels, num_inference_steps=2)
    assert answer.image == in_process(restorer, read_image(WOMAN), num_inference_steps=2)
    file = io.BytesIO()
    alpha = np.tile(np.linspace(0, 255, pixels.shape[1]).astype(np.uint8), (pixels.shape[0], 1))
    Image.fromarray(np.dstack([pixels, alpha])).save(file, "PNG")
    found = client.restore(file.getvalue(), num_inference_steps=2).picture
    assert found.alpha is not None
    assert found.alpha[:, 0].max() < 0.05 < 0.95 < found.alpha[:, -1].min()
    np.testing.assert_array_equal(found.pixels, answer.picture.pixels)


def test_metadata_and_notices_come_back(client: Client) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    frames = [Image.new("RGBA", (64, 32), (200, 90, 60, alpha)) for alpha in (255, 128)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], exif=exif.tobytes(), xmp=b"<x:xmpmeta/>")
    answer = client.restore(file.getvalue(), num_inference_steps=2, output_format="jpg")
    with Image.open(io.BytesIO(answer.image)) as image:
        assert image.getexif()[0x010F] == "Maker"
        assert 0x0112 not in image.getexif()
        assert image.info["xmp"] == b"<x:xmpmeta/>"
        assert image.width < image.height
    assert answer.report.notices[0] == "the file holds several frames or pages: the first of 2 is taken"
    assert answer.report.notices[-1] == "JPEG holds no transparency: laid over white"


def test_nobody_in_the_picture_is_said(client: Client) -> None:
    answer = client.restore(np.full((64, 64, 3), 128, np.uint8), num_inference_steps=2)
    assert answer.report.people == 0
    assert "no person found" in answer.report.notices[0]
    assert answer.report.loss_curve == []


def test_a_plain_http_request_needs_the_picture_only(server: Server) -> None:
    pixels = np.asarray(Image.open(PERSON).convert("RGB"))
    inputs = [tensor("PIXELS", "UINT8", list(pixels.shape), pixels.ravel().tolist())]
    inputs.append(tensor("NUM_INFERENCE_STEPS", "INT64", [1], [1]))
    status, body = post(server, {"inputs": inputs, "outputs": [{"name": "REPORT"}]})
    assert status == 200, body
    (output,) = json.loads(body)["outputs"]
    assert json.loads(output["data"][0])["steps"] == 1


def mixed(number: int) -> tuple[Path, dict[str, Any]]:
    """Another request for each number: size, steps, sampler, prompt, guidance, seed."""
    call = {
        "num_inference_steps": 2 + number % 5,
        "sampler": ("ddpm", "ddim", "dpm++")[number % 3],
        "seed": number,
        "guidance_scale": 1.0 + number % 2,
        "body_guidance_scale": 100.0 * (number % 4 > 0),
        "prompt": f"person {number}",
        "strength": (0.3, 1.0)[number % 2],
    }
    return (PERSON, WOMAN, SAMPLES / "astronaut.jpg")[number % 3], call


def test_sixteen_clients_with_mixed_requests_get_what_they_get_alone(server: Server, restorer: Restorer) -> None:
    def one(number: int) -> bytes:
        picture, call = mixed(number)
        # More than the eight in flight: some are told to retry, and do, until their turn comes.
        config = ClientConfig((url(server, ("grpc", "http")[number % 2]),), timeout=HANG, tries=1000)
        with Client(config) as client:
            return client.restore(picture, **call).image

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(16)))
    for number, image in enumerate(found):
        picture, call = mixed(number)
        alone = restorer.restore(read_image(picture), **call).pixels
        # float32 sums run in another order in a batch: at most 1e-3, and then the rounding to 8 bits.
        assert np.abs(decode_image(image).pixels - alone).max() <= 1e-3 + 0.5 / 255 + 1e-6, number
    assert metric(server, "diffbody_in_flight") == 0
