"""Every row of docs/diffusers.md is tried: what it says works does so, and what it says is refused is, in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from PIL import Image

import diffbody_ref
from diffbody_ref.components import load_component
from diffbody_ref.models.text import encode_prompt
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.prompts import NEGATIVE_UNUSED
from diffbody_ref.pipeline import DiffBodyPipeline

PAGE = Path(__file__).parent.parent / "docs" / "diffusers.md"
ROWS = dict(re.findall(r"^\| (`.+?) \| (works|refused) \|", PAGE.read_text(encoding="utf-8"), re.M))
FAST: dict[str, Any] = {
    "num_inference_steps": 2,
    "strength": 1.0,
    "output_type": "np",
    "use_structure": False,
    "upscale": 1.0,
}

Try = Callable[[DiffBodyPipeline, Path], None]
TRIES: dict[str, Try] = {}


def row(habit: str) -> Callable[[Try], Try]:
    def note(function: Try) -> Try:
        TRIES[habit] = function
        return function

    return note


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((64, 48, 3), dtype=np.float32)


def tensor(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1)


@pytest.fixture
def pipe(networks: DiffBodyPipeline) -> DiffBodyPipeline:
    """A pipeline that a test may change; its networks are everybody's."""
    return DiffBodyPipeline(**networks.components, **networks.settings.of_pipeline())


@pytest.fixture(scope="module")
def networks() -> DiffBodyPipeline:
    return DiffBodyPipeline.from_pretrained(NANO_FOLDER)


@pytest.mark.parametrize("habit", ROWS)
def test_a_row_of_the_page(pipe: DiffBodyPipeline, tmp_path: Path, habit: str) -> None:
    if ROWS[habit] == "works":
        TRIES[habit](pipe, tmp_path)
        return
    with pytest.raises((ValueError, OSError, AttributeError)) as caught:
        TRIES[habit](pipe, tmp_path)
    assert 0 < len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_every_row_is_tried() -> None:
    assert list(ROWS) == list(TRIES)
    assert len(re.findall(r"^\| `", PAGE.read_text(encoding="utf-8"), re.M)) == len(ROWS)


# ---- Loading and saving


@row("`DiffBodyPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, unet=unet)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    made = DiffBodyPipeline.from_pretrained(NANO_FOLDER, torch_dtype=torch.bfloat16, unet=pipe.unet)
    assert made.unet is pipe.unet
    assert made.vae.dtype == torch.bfloat16


@row("`DiffBodyPipeline.from_pretrained(folder, parts=None)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    made = DiffBodyPipeline.from_pretrained(NANO_FOLDER, parts=None)
    assert made.parts is None
    assert DiffBodyPipeline.from_pipe(made).lacking == ("parts",)
    (notices,) = made(picture(), **{**FAST, "num_inference_steps": 1, "use_structure": True}).notices
    assert notices[0] == "the model has no part network: no attention maps and no body guidance"


@row('`DiffBodyPipeline.from_pretrained("someone/model")`')
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    DiffBodyPipeline.from_pretrained("someone/model")


@row('`DiffBodyPipeline.from_pretrained(folder, custom_pipeline="…")`')
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    DiffBodyPipeline.from_pretrained(NANO_FOLDER, custom_pipeline="lpw_stable_diffusion")


@row("`DiffusionPipeline.from_pretrained(folder)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    DiffusionPipeline.from_pretrained(NANO_FOLDER)


@row("`DiffusionPipeline.from_pretrained(folder, custom_pipeline=diffbody_ref.__path__[0], trust_remote_code=True)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(folder))
        patch.syspath_prepend(folder)
        made = DiffusionPipeline.from_pretrained(
            NANO_FOLDER,
            custom_pipeline=diffbody_ref.__path__[0],
            trust_remote_code=True,
            torch_dtype=torch.float32,
        )
    assert type(made).__name__ == "DiffBodyPipeline"
    assert type(made) is not DiffBodyPipeline
    # The same weights at other addresses: a convolution may take another kernel, so equal up to float32 rounding.
    np.testing.assert_allclose(made(picture(), **FAST).images[0], pipe(picture(), **FAST).images[0], atol=2e-3)


@row("`pipe.save_pretrained(folder)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(folder / "saved")
    assert not list(folder.rglob("*.bin"))
    assert DiffBodyPipeline.from_pretrained(folder / "saved").settings == pipe.settings
    assert pipe.settings.sampler == "ddim"


@row("`DiffBodyPipeline.from_pipe(pipe)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    made = DiffBodyPipeline.from_pipe(pipe)
    assert made.unet is pipe.unet
    assert made.settings == pipe.settings


# ---- Calling


@row("`pipe(torch.rand(2, 3, 64, 48))`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    pictures = [picture(1), picture(2)]
    wanted = pipe(pictures, **FAST).images
    for given in (tensor(*pictures), np.stack(pictures), list(tensor(*pictures)), [tensor(*pictures)]):
        np.testing.assert_array_equal(pipe(given, **FAST).images, wanted)
    (alone,) = pipe(tensor(pictures[0])[0].double(), **FAST).images
    assert alone.shape == (64, 48, 3)


@row("`pipe(torch.zeros(3, 64, 48, dtype=torch.uint8))`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    refused: list[Any] = [
        torch.rand(4, 64, 48),
        torch.rand(64, 48),
        torch.rand(3, 64, 48) * 255,
        [],
        np.zeros((2, 2, 2, 2, 3)),
    ]
    for wrong in refused:
        with pytest.raises(ValueError, match=r"\[0, 1\]|empty list"):
            pipe(wrong, **FAST)
    pipe(torch.zeros(3, 64, 48, dtype=torch.uint8))


@row('`pipe(picture, "a prompt of 200 words")`')
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    ends = [pipe(picture(), "word " * 200 + end, **FAST) for end in ("dog", "sea")]
    assert not np.array_equal(ends[0].images[0], ends[1].images[0])
    assert ends[0].notices == [[]]


@row('`pipe(picture, negative_prompt="blurry", guidance_scale=1.0)`')
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    out = pipe(picture(), negative_prompt="blurry", guidance_scale=1.0, **FAST)
    assert out.notices == [[NEGATIVE_UNUSED]]
    np.testing.assert_array_equal(out.images[0], pipe(picture(), guidance_scale=1.0, **FAST).images[0])


@row("`pipe(picture, prompt_embeds=text, negative_prompt_embeds=empty)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    embed = lambda *prompts: encode_prompt(pipe.tokenizer, pipe.text_encoder, prompts)  # noqa: E731
    text, empty = embed("a red coat"), embed("blurry")
    call = {**FAST, "guidance_scale": 3.0}
    wanted = pipe(picture(), "a red coat", "blurry", **call).images[0]
    np.testing.assert_array_equal(
        pipe(picture(), prompt_embeds=text, negative_prompt_embeds=empty, **call).images[0], wanted
    )
    np.testing.assert_array_equal(
        pipe(picture(), negative_prompt="blurry", prompt_embeds=text, **call).images[0], wanted
    )
    two = embed("a red coat", "a hat")
    both = pipe([picture(1), picture(2)], prompt_embeds=two, num_images_per_prompt=2, **FAST).images
    words = pipe([picture(1), picture(2)], ["a red coat", "a hat"], num_images_per_prompt=2, **FAST).images
    # One batch of four rows against two of two: sums in another order.
    np.testing.assert_allclose(both, words, atol=2e-3)
    for wrong, message in (
        ({"prompt_embeds": text[0]}, "prompt_embeds must be a tensor"),
        ({"prompt_embeds": text[..., :5]}, "prompt_embeds must be a tensor"),
        ({"prompt_embeds": "a"}, "got str"),
        ({"prompt_embeds": torch.cat([text] * 3)}, "prompt_embeds must be a tensor"),
        ({"prompt_embeds": text, "negative_prompt_embeds": empty[:, :5]}, "must be of one shape"),
        ({"prompt_embeds": text[:, :5]}, "of one length"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(picture(), **wrong, **call)


@row('`pipe(picture, prompt="…", prompt_embeds=text)`')
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    text = encode_prompt(pipe.tokenizer, pipe.text_encoder, ["a red coat"])
    pipe(picture(), prompt="a red coat", prompt_embeds=text, **FAST)


@row("`pipe(picture, num_images_per_prompt=2)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    out = pipe([picture(1), picture(2)], ["a", "b"], num_images_per_prompt=2, seed=[5, 9], **FAST)
    assert len(out.images) == len(out.notices) == 4
    alone = [
        pipe(picture(which), prompt, seed=seed, **FAST).images[0]
        for which, prompt, seed in ((1, "a", 5), (1, "a", 6), (2, "b", 9), (2, "b", 10))
    ]
    np.testing.assert_allclose(out.images, alone, atol=2e-3)  # float32 sums of another batch size
    assert not np.array_equal(out.images[0], out.images[1])
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="num_images_per_prompt"):
            pipe(picture(), num_images_per_prompt=wrong, **FAST)


@row("`pipe(picture, generator=torch.Generator().manual_seed(1))`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    one = pipe(picture(), generator=torch.Generator().manual_seed(1), num_images_per_prompt=2, **FAST).images
    many = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    two = pipe([picture(), picture()], generator=many, **FAST).images
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(two[0], two[1])


@row('`pipe(picture, output_type="latent")`')
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    call = {**FAST, "output_type": "latent"}
    latents, other = pipe([picture()[:50], picture()[:, :32]], **call).images
    # At work they have the area of 256x128: 185x177 padded to multiples of 16, and 256x128.
    assert latents.shape == (8, 192 // pipe.factor, 192 // pipe.factor)
    assert other.shape == (8, 256 // pipe.factor, 128 // pipe.factor)
    assert latents.dtype == torch.float32
    kinds = {"pil": Image.Image, "np": np.ndarray, "pt": torch.Tensor}
    assert all(isinstance(pipe(picture(), **{**FAST, "output_type": k}).images[0], kind) for k, kind in kinds.items())


@row("`pipe(picture, return_dict=False)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    images, notices = pipe(picture(), **FAST, return_dict=False)
    assert images[0].shape == (64, 48, 3)
    assert notices == [[]]
    assert len(pipe(picture(), **FAST, return_dict=False, return_intermediates=True)) == 3


@row('`pipe(picture, callback_on_step_end=f, callback_on_step_end_tensor_inputs=["latents"])`')
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    seen: list[set[str]] = []

    def watch(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
        seen.append(set(tensors))

    call = {**FAST, "callback_on_step_end": watch}
    for names in (["latents"], ["prompt_embeds", "negative_prompt_embeds"], []):
        pipe(picture(), **call, guidance_scale=2.0, callback_on_step_end_tensor_inputs=names)
        assert seen[-1] == set(names)
    pipe(picture(), **call)
    assert seen[-1] == {"latents", "z0"}
    with pytest.raises(ValueError, match="unknown callback_on_step_end_tensor_inputs 'noise'"):
        pipe(picture(), **call, callback_on_step_end_tensor_inputs=["noise"])


@row('`return {"latents": latents}` in the callback')
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    names = ["latents", "z0", "prompt_embeds", "negative_prompt_embeds"]

    def run(change: Callable[[dict[str, Any]], Any], **options: Any) -> np.ndarray:
        callback = lambda pipe, step, timestep, tensors: change(tensors)  # noqa: E731
        call = {**FAST, "callback_on_step_end_tensor_inputs": names, "guidance_scale": 3.0, **options}
        return pipe(picture(), "a hat", callback_on_step_end=callback, **call).images[0]

    plain = run(lambda tensors: None)
    np.testing.assert_array_equal(run(lambda tensors: tensors), plain)
    np.testing.assert_array_equal(run(lambda tensors: {}), plain)
    for name in ("latents", "prompt_embeds", "negative_prompt_embeds"):

        def halve(tensors: dict[str, Any], name: str = name) -> dict[str, Any]:
            return {name: tensors[name] * 0.5}

        assert not np.array_equal(run(halve), plain)
    run(lambda tensors: tensors, guidance_scale=1.0)  # where negative_prompt_embeds is None
    refused: dict[str, Any] = {
        "cannot change 'z0'": lambda tensors: {"z0": tensors["z0"] + 1},
        "cannot change 'x'": lambda tensors: {"x": 1},
        "of another shape": lambda tensors: {"latents": tensors["latents"][..., :2]},
        "another shape": lambda tensors: {"latents": None},
        "dictionary or None": lambda tensors: 3,
    }
    for message, change in refused.items():
        with pytest.raises(ValueError, match=message):
            run(change)


@row("`pipe._interrupt = True` in the callback")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    seen: list[torch.Tensor] = []

    def stop(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
        seen.append(tensors["z0"])
        pipe._interrupt = step == 1

    call = {**FAST, "num_inference_steps": 5, "output_type": "latent"}
    out = pipe([picture(), picture()[:32]], **call, callback_on_step_end=stop)
    assert len(seen) == 2  # of the first size; the second one was not begun
    torch.testing.assert_close(out.images[0], seen[1][0])
    assert out.notices == [["interrupted after 2 of 5 steps"], ["interrupted after 0 of 5 steps"]]
    assert pipe.interrupt
    assert pipe(picture(), **call).notices == [[]]  # the next call begins anew
    assert not pipe.interrupt


@row("`pipe.set_progress_bar_config(disable=False)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    import io
    from contextlib import redirect_stderr

    shown = []
    for config in ({"disable": True}, {"disable": False}, {"desc": "steps"}):
        with redirect_stderr(io.StringIO()) as stderr:
            fresh = DiffBodyPipeline(**pipe.components, **pipe.settings.of_pipeline())
            if config != {"disable": True}:  # the default
                fresh.set_progress_bar_config(**config)
            fresh(picture(), **FAST)
        shown.append("2/2" in stderr.getvalue())
    assert shown == [False, True, True]


@row("`pipe(picture, height=512, width=512)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    call = {**FAST, "upscale": None, "return_intermediates": True}
    larger = pipe(picture(), **call, height=96, width=96)
    assert larger.intermediates[0].regression.shape[:2] == larger.images[0].shape[:2] == (111, 84)
    smaller = pipe(np.concatenate([picture()] * 3, axis=1), **call, height=64, width=64)
    assert smaller.intermediates[0].regression.shape[:2] == (43, 96)
    assert smaller.images[0].shape[:2] == (64, 144)


@row("`pipe(picture, eta=0.5)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    for name in ("latents", "timesteps", "cross_attention_kwargs", "clip_skip"):
        with pytest.raises(ValueError, match=f"unknown option '{name}'; known are num_inference_steps"):
            pipe(picture(), **{name: 1})
    pipe(picture(), eta=0.5)


# ---- Schedulers; tests/test_schedulers.py has the rest


@row("`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    named = pipe(picture(), **FAST, sampler="ddim").images[0]
    before = pipe(picture(), **FAST).images[0]
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    np.testing.assert_array_equal(pipe(picture(), **FAST).images[0], named)
    assert not np.array_equal(before, named)


@row(
    "`pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, "
    'prediction_type="v_prediction", rescale_betas_zero_snr=True)`'
)
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    before = pipe(picture(), **FAST).images[0]
    pipe.scheduler = DDPMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    assert not np.array_equal(pipe(picture(), **FAST).images[0], before)


@row("`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=True)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=True)
    pipe(picture(), **FAST)


@row("`pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe(picture(), **FAST)


@row("`pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe(picture(), **FAST)


# ---- Memory and weights


@row("`pipe.to(device)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    """On "meta", a tensor that was left on the CPU is refused, as on a GPU."""
    moved = DiffBodyPipeline.from_pretrained(NANO_FOLDER).to("meta")
    call = {**FAST, "output_type": "latent", "guidance_scale": 2.0}
    assert moved(picture(), "a hat", **call).images[0].device.type == "meta"


@row("`pipe.enable_model_cpu_offload()`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    """By accelerate's hooks onto the CPU itself, and on "meta" while the weights seem to wait on the CPU."""
    offloaded = DiffBodyPipeline.from_pretrained(NANO_FOLDER)
    person = Image.open(PAGE.parent.parent / "samples" / "degraded" / "synthetic_1.jpg")
    call = {**FAST, "use_structure": True, "upscale": None, "guidance_scale": 2.0}
    wanted = offloaded(person, "a hat", **call, return_intermediates=True)
    assert wanted.intermediates[0].loss_curve, "all networks run"
    offloaded.enable_model_cpu_offload(device="cpu")
    ran: set[str] = set()

    def counted(name: str, before: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            ran.add(name)
            return before(*args, **kwargs)

        return run

    for name, network in offloaded.components.items():
        if isinstance(network, torch.nn.Module):
            network._hf_hook.pre_forward = counted(name, network._hf_hook.pre_forward)
    np.testing.assert_array_equal(offloaded(person, "a hat", **call).images[0], wanted.images[0])
    assert ran == {name for name, each in offloaded.components.items() if isinstance(each, torch.nn.Module)}

    waiting = DiffBodyPipeline.from_pretrained(NANO_FOLDER).to("meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffBodyPipeline, "device", property(lambda self: torch.device("cpu")))
        patch.setattr(DiffBodyPipeline, "_execution_device", property(lambda self: torch.device("meta")))
        latents = waiting(picture(), "a hat", **{**FAST, "output_type": "latent", "guidance_scale": 2.0}).images[0]
    assert latents.device.type == "meta"


@row("`pipe.enable_sequential_cpu_offload()`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    pipe.enable_sequential_cpu_offload(device="cpu")


@row("`pipe.enable_attention_slicing()`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    sliced = DiffBodyPipeline.from_pretrained(NANO_FOLDER)
    wanted = sliced(picture(), **FAST).images[0]
    sliced.enable_attention_slicing()
    np.testing.assert_allclose(sliced(picture(), **FAST).images[0], wanted, atol=2e-3)  # sums in another order


@row("`pipe.enable_vae_slicing()`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    pictures, call = [picture(1), picture(2)], {**FAST, "body_guidance_scale": 1.0}
    wanted = pipe(pictures, **call).images
    pipe.enable_vae_slicing()
    try:
        assert pipe.vae.use_slicing
        np.testing.assert_allclose(pipe(pictures, **call).images, wanted, atol=2e-3)
    finally:
        pipe.disable_vae_slicing()
    assert not pipe.vae.use_slicing


@row("`pipe.enable_vae_tiling()`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    pipe.enable_vae_tiling()


@row("`pipe.load_lora_weights(folder)`")
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    from diffbody_ref.training.lora import FOLDER, add_lora, merge_lora, save_lora

    def unet() -> UNet2DConditionModel:
        return load_component(NANO_FOLDER, "unet")

    trained = unet()
    add_lora(trained, folder, rank=2)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))
    save_lora(trained, folder)
    merged = unet()
    merge_lora(merged, folder)
    fresh = DiffBodyPipeline(**{**pipe.components, "unet": unet()}, **pipe.settings.of_pipeline())
    before = fresh(picture(), "a hat", **FAST).images[0]
    fresh.load_lora_weights(folder / FOLDER)
    loaded = fresh(picture(), "a hat", **FAST).images[0]
    assert np.abs(loaded - before).max() > 0.01
    other = DiffBodyPipeline(**{**pipe.components, "unet": merged}, **pipe.settings.of_pipeline())
    # W·x + B·A·x against (W + B·A)·x, of float32.
    np.testing.assert_allclose(other(picture(), "a hat", **FAST).images[0], loaded, atol=2e-3)
    fresh.unload_lora_weights()
    np.testing.assert_array_equal(fresh(picture(), "a hat", **FAST).images[0], before)


@row('`pipe.load_lora_weights(folder, weight_name="lora.bin")`')
def _(pipe: DiffBodyPipeline, folder: Path) -> None:
    torch.save({"unet.x.lora_A.weight": torch.zeros(1)}, folder / "lora.bin")
    pipe.load_lora_weights(folder, weight_name="lora.bin")
