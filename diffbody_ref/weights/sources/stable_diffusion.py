"""Stable Diffusion 1.x and 2.x in one file (.ckpt, .safetensors), in the layout of its own trainer."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from diffbody_ref.models.text import CLIP_PAD, OPEN_CLIP_PAD, build_tokenizer
from diffbody_ref.weights import ldm, schedules
from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.filling import below, fill, split, without_weights
from diffbody_ref.weights.found import Found, Imported

NAME = "Stable Diffusion"
LICENCE = "CreativeML Open RAIL-M"
BUFFERS = (
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "logvar",
    "scale_factor",
    "lvlb_weights",
)  # of the noise schedule


def detect(checkpoint: Checkpoint) -> list[Found]:
    """U-Net, autoencoder and text encoder, all or some of them; a text encoder brings its tokenizer."""
    tensors = checkpoint.tensors
    found = []
    if ldm.looks_like(tensors, ldm.UNET, "input_blocks.0.0.weight", "out.2.weight"):
        found += _denoiser(checkpoint)
    for prefix in (ldm.VAE, ""):
        if ldm.looks_like(tensors, prefix, "encoder.down.0.block.0.conv2.weight", "decoder.conv_in.weight"):
            config = ldm.vae_config(below(tensors, prefix))
            what = f"autoencoder, {config['latent_channels']} latent channels"
            found.append(Found("vae", what, {"prefix": prefix, "sizes": config}, (prefix,)))
    text = below(tensors, ldm.TEXT)
    if ldm.is_open_clip(text) or "transformer.text_model.embeddings.token_embedding.weight" in text:
        config = ldm.text_config(text)
        kind = "OpenCLIP" if ldm.is_open_clip(text) else "CLIP"
        what = f"{kind} text encoder, {config['num_hidden_layers']} layers of {config['hidden_size']}"
        pad = OPEN_CLIP_PAD if kind == "OpenCLIP" else CLIP_PAD
        found.append(Found("text_encoder", what, config, (ldm.TEXT,)))
        found.append(Found("tokenizer", f"CLIP's vocabulary, padded with {pad!r}", {"pad": pad}, ()))
    return found


def _denoiser(checkpoint: Checkpoint) -> list[Found]:
    tensors, averaged = checkpoint.tensors, ldm.averaged(checkpoint.tensors)
    try:
        config = ldm.unet_config(below(tensors, ldm.UNET))
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: a U-Net, but {error}") from None
    version = "2" if config["use_linear_projection"] else "1"
    weights = ", averaged (EMA) weights" if averaged else ""
    what = f"Stable Diffusion {version} U-Net of {config['block_out_channels'][0]} channels{weights}"
    alphas = ldm.schedule(tensors)
    zero, betas = (None, {}) if alphas is None else schedules.read_schedule(alphas)
    steps = f"schedule of {len(alphas)} steps" if alphas is not None else "Stable Diffusion's schedule"
    return [
        Found("unet", what, {"averaged": bool(averaged), "sizes": config}, (ldm.UNET, ldm.EMA)),
        Found("scheduler", steps, {"zero_snr": zero, "betas": betas}, BUFFERS),
    ]


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """One of the components.

    Raises:
        ValueError: a tensor is missing, left over or of another shape, or the U-Net reads something beside latents.
    """
    return READERS[found.component](checkpoint, found)


def _unet(checkpoint: Checkpoint, found: Found) -> Imported:
    sizes, path = found.config["sizes"], checkpoint.path
    if sizes["in_channels"] != sizes["out_channels"]:
        raise ValueError(
            f"{path}: a U-Net that reads {sizes['in_channels']} channels, as for inpainting or depth; "
            f"DiffBody needs one that reads {sizes['out_channels']}"
        )
    plain = below(checkpoint.tensors, ldm.UNET)
    tensors = ldm.averaged(checkpoint.tensors) or plain
    reason = "the plain weight of an averaged one" if found.config["averaged"] else "an average of a part of the U-Net"
    unused = ldm.UNET if found.config["averaged"] else ldm.EMA
    ignored = {name: reason for name in checkpoint.tensors if name.startswith(unused)}
    settings = (ldm.EMA + name for name in ("decay", "num_updates"))
    ignored |= {name: "a setting of the averaging" for name in settings if name in checkpoint.tensors}
    network = without_weights(lambda: UNet2DConditionModel(**sizes))
    return Imported(fill(network, ldm.as_unet(tensors, network.config), path), ignored, LICENCE)


def _vae(checkpoint: Checkpoint, found: Found) -> Imported:
    prefix = found.config["prefix"]
    reasons = {r"^(loss|model_ema|discriminator)\.": "a part of the autoencoder's training"}
    tensors, ignored = split(below(checkpoint.tensors, prefix), reasons)
    network = without_weights(lambda: AutoencoderKL(**found.config["sizes"]))
    ignored = {prefix + name: reason for name, reason in ignored.items()}
    return Imported(fill(network, ldm.as_vae(tensors, network.config), checkpoint.path), ignored, LICENCE)


def _text_encoder(checkpoint: Checkpoint, found: Found) -> Imported:
    reasons = {
        r"^model\.(attn_mask|text_projection|logit_scale)$|position_ids$": "no part of the embeddings",
        ldm.open_clip_last_layer(below(checkpoint.tensors, ldm.TEXT)): "of the last layer, which is not read",
    }
    tensors, ignored = split(below(checkpoint.tensors, ldm.TEXT), reasons)
    network = without_weights(lambda: CLIPTextModel(CLIPTextConfig(**found.config)))
    ignored = {ldm.TEXT + name: reason for name, reason in ignored.items()}
    return Imported(fill(network, ldm.as_text(tensors, network), checkpoint.path), ignored, LICENCE)


def _tokenizer(checkpoint: Checkpoint, found: Found) -> Imported:
    return Imported(build_tokenizer(found.config["pad"]), {}, "MIT (CLIP)")


def _scheduler(checkpoint: Checkpoint, found: Found) -> Imported:
    reason = "computed from the betas"
    ignored = {name: reason for name in checkpoint.tensors if name.startswith(BUFFERS)}
    prediction = found.config.get("prediction", "epsilon")
    return Imported(schedules.scheduler(prediction, found.config["betas"]), ignored, LICENCE)


READERS: dict[str, Callable[[Checkpoint, Found], Imported]] = {
    "unet": _unet,
    "vae": _vae,
    "text_encoder": _text_encoder,
    "tokenizer": _tokenizer,
    "scheduler": _scheduler,
}
