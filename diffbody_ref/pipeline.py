"""DiffBodyPipeline: a degraded picture of people in, a restored one out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from diffbody_ref.components import COMPONENT_CLASSES, load_component
from diffbody_ref.guidance import BodyGuidance, GuidanceConfig
from diffbody_ref.models.control import ControlBranch, condition_latents, denoise
from diffbody_ref.models.parts import PartNet
from diffbody_ref.models.pose import PersonDetector, PoseEstimator
from diffbody_ref.models.swinir import SwinIR
from diffbody_ref.models.text import encode_prompt
from diffbody_ref.models.vae import decode, encode_mode
from diffbody_ref.ops.colour import match_colour
from diffbody_ref.ops.images import ImageInput, Picture, as_picture, crop, pad_to_multiple, resize, working_size
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.results import NO_PERSON, Intermediates
from diffbody_ref.pictures import DiffBodyOutput, as_output, to_pixels
from diffbody_ref.sampling import (
    NoiseSource,
    StepInfo,
    ddpm_schedule,
    generator_noise,
    initial_latents,
    make_scheduler,
    noise_source,
    sample_ddpm,
    sample_with_scheduler,
    scheduler_schedule,
)
from diffbody_ref.structure import Structure, empty_structure, structure_maps
from diffbody_ref.tiled import apply_tiled

PRESET_SETTINGS = (
    "base_height",
    "base_width",
    "tile_size",
    "guidance_scale",
    "body_guidance_scale",
    "strength",
    "use_residual",
)
OVERLAP = 0.125  # of a tile's side, shared by neighbours


@dataclass
class _Job:
    """One picture on its way through the stages; tensors are (1, C, H, W) of the padded working size."""

    picture: Picture
    size: tuple[int, int]
    regression: Tensor
    structure: Structure
    z_r: Tensor
    condition: Tensor
    notices: list[str]


class DiffBodyPipeline(DiffusionPipeline):
    """Human body restoration with a diffusion prior.

    Args:
        swinir, pose_detector, pose, parts, tokenizer, text_encoder, vae, unet, control, scheduler: see
            `diffbody_ref.components`. The scheduler documents the noise schedule in the saved folder.
        base_height, base_width: pictures of less area are scaled up to this area.
        tile_size: side in pixels above which every stage works in tiles.
        guidance_scale, body_guidance_scale, strength, use_residual: what `None` means in a call.
    """

    model_cpu_offload_seq = "swinir->pose_detector->pose->parts->text_encoder->vae->control->unet->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        swinir: SwinIR,
        pose_detector: PersonDetector,
        pose: PoseEstimator,
        parts: PartNet,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        control: ControlBranch,
        scheduler: DDPMScheduler,
        base_height: int = 1024,
        base_width: int = 512,
        tile_size: int = 1024,
        guidance_scale: float = 4.0,
        body_guidance_scale: float = 0.1,
        strength: float = 1.0,
        use_residual: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(
            swinir=swinir,
            pose_detector=pose_detector,
            pose=pose,
            parts=parts,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            unet=unet,
            control=control,
            scheduler=scheduler,
        )
        self.register_to_config(
            base_height=base_height,
            base_width=base_width,
            tile_size=tile_size,
            guidance_scale=guidance_scale,
            body_guidance_scale=body_guidance_scale,
            strength=strength,
            use_residual=use_residual,
        )
        for component in self.components.values():
            if isinstance(component, torch.nn.Module):
                component.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a folder in diffusers' layout. Components in safetensors; no code from the folder is run.

        Components are of the classes that `diffbody_ref.components` names, whatever the folder's index says; one given
        as a keyword replaces the folder's.

        Raises:
            FileNotFoundError: no such folder, or a component is missing.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{folder}: not a DiffBody pipeline folder, it has no model_index.json")
        index = json.loads((folder / "model_index.json").read_text())
        settings = {name: value for name, value in index.items() if name in PRESET_SETTINGS}
        dtype = kwargs.pop("torch_dtype", torch.float32)
        components = {name: kwargs.pop(name, None) or load_component(folder, name, dtype) for name in COMPONENT_CLASSES}
        if kwargs:
            raise ValueError(f"unknown argument {next(iter(kwargs))!r}; components and torch_dtype can be given")
        return cls(**components, **settings)

    def options(self, **asked: Any) -> RestoreOptions:
        """`RestoreOptions` of a call: what was not asked for (None) is the preset's value, or the class's.

        Raises:
            ValueError: a value out of its range.
        """
        preset = {name: self.config[name] for name in PRESET_SETTINGS if name in RestoreOptions.__dataclass_fields__}
        return RestoreOptions(**{**preset, **{name: value for name, value in asked.items() if value is not None}})

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], Any] | None = None,
        output_type: str = "pil",
        return_intermediates: bool = False,
        **options: Any,
    ) -> DiffBodyOutput:
        """Restore one picture or several.

        Args:
            image: PIL picture (any mode; EXIF orientation is applied), float array (H, W, 3) in [0, 1], `Picture` of
                `ops.images`, or a list of them. Any size from 16×16.
            prompt, negative_prompt: a caption, or one a picture; None is empty.
            seed: one for all pictures, or one a picture. Noise comes from it by Philox, as everywhere in this project.
            generator: torch generators instead of the seed, one for all or one a picture.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents", "z0"}) after each step; what it
                returns is ignored; an exception from it ends the restoration.
            output_type: "pil" (RGBA where the input had alpha), "np" (float32 (H, W, 3)) or "pt" ((3, H, W)).
            return_intermediates: also return what the stages found.
            **options: fields of `RestoreOptions`: num_inference_steps, guidance_scale, body_guidance_scale, strength,
                sampler, colour_fix, use_residual, upscale, use_{structure,pose,attention}, tile_size,
                body_guidance_{start,stop,every}.

        Raises:
            ValueError: a value out of its range, or lists that differ in length.
        """
        settings = self.options(**_known(options))
        pictures = [as_picture(one) for one in _as_list(image)]
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"unknown output_type {output_type!r}, choose one of pil, np, pt")
        prompts = _one_each("prompt", prompt or "", len(pictures))
        negatives = _one_each("negative_prompt", negative_prompt or "", len(pictures))
        seeds = _one_each("seed", seed, len(pictures))
        generators = None if generator is None else _one_each("generator", generator, len(pictures))

        jobs = [self._prepare(picture, settings) for picture in pictures]
        results: dict[int, tuple[np.ndarray, Intermediates]] = {}
        for group in _groups_of_equal_size(jobs):
            batch = [jobs[i] for i in group]
            shape = tuple(batch[0].z_r.shape[1:])
            place = {"device": self.device, "dtype": torch.float32}
            if generators is not None:
                noise = generator_noise([generators[i] for i in group], shape, **place)
            else:
                noise = noise_source([seeds[i] for i in group], shape, **place)
            text = encode_prompt(self.tokenizer, self.text_encoder, [prompts[i] for i in group])
            empty = encode_prompt(self.tokenizer, self.text_encoder, [negatives[i] for i in group])
            latents, curves = self._sample(batch, text, empty, noise, settings, callback_on_step_end)
            for i, job, z, curve in zip(group, batch, latents, curves, strict=True):
                results[i] = self._finish(job, z[None], curve, settings)
        ordered = [results[i] for i in range(len(jobs))]
        return DiffBodyOutput(
            images=[
                as_output(pixels, job.picture, output_type) for (pixels, _), job in zip(ordered, jobs, strict=True)
            ],
            intermediates=[found for _, found in ordered] if return_intermediates else None,
            notices=[job.notices for job in jobs],
        )

    def _prepare(self, picture: Picture, settings: RestoreOptions) -> _Job:
        """Steps 1 to 4 of the method for one picture: r, P, A and z_r."""
        height, width = picture.pixels.shape[:2]
        if settings.upscale is not None:
            height, width = (max(16, round(side * settings.upscale)) for side in (height, width))
        size = working_size(height, width, self.config.base_height, self.config.base_width, self.multiple)
        pixels = pad_to_multiple(resize(picture.pixels, size.height, size.width), self.multiple)
        low = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].to(self.device, self.swinir.dtype).clamp(0, 1)
        regression = self._tiled(self.swinir, low, settings, (1, 1)).clamp(0, 1)
        notices = []
        if settings.use_structure:
            structure = structure_maps(self.pose_detector, self.pose, self.parts, regression)
            if not structure.crops:
                notices.append(NO_PERSON)
        else:
            structure = empty_structure(regression, len(self.parts.part_names))
        z_r = self._tiled(
            lambda x: encode_mode(self.vae, x * 2 - 1), regression.to(self.vae.dtype), settings, (1, self.factor)
        )
        pose, attention = structure.pose * settings.use_pose, structure.attention * settings.use_attention
        condition = condition_latents(z_r, pose.to(z_r), attention.to(z_r))
        return _Job(picture, (size.height, size.width), regression, structure, z_r.float(), condition, notices)

    def _sample(
        self,
        jobs: list[_Job],
        text: Tensor,
        empty: Tensor,
        noise: NoiseSource,
        settings: RestoreOptions,
        callback: Callable[[Any, int, int, dict[str, Tensor]], Any] | None,
    ) -> tuple[Tensor, list[list[tuple[int, float]]]]:
        """Step 5, algorithm 1: z_0 (B, C, h, w) float32 and the loss curves of a batch of equal size."""
        z_r = torch.cat([job.z_r for job in jobs])
        denoiser = self._denoiser(torch.cat([job.condition for job in jobs]), text, empty, settings)
        guidance = self._guidance(jobs, settings)
        curves: list[list[tuple[int, float]]] = [[] for _ in jobs]

        def after_step(info: StepInfo) -> None:
            if info.loss is not None:
                for curve, loss, job in zip(curves, info.loss.tolist(), jobs, strict=True):
                    if job.structure.crops:
                        curve.append((info.timestep, loss))
            if callback is not None:
                callback(self, info.step, info.timestep, {"latents": info.latents, "z0": info.z0})

        steps, strength = settings.num_inference_steps, settings.strength
        if settings.sampler == "ddpm":
            schedule = ddpm_schedule(steps, strength)
            start = initial_latents(z_r, schedule, noise, strength)
            return sample_ddpm(denoiser, start, schedule, noise, guidance, after_step), curves
        scheduler = make_scheduler(settings.sampler)
        start = initial_latents(z_r, scheduler_schedule(scheduler, steps, strength), noise, strength)
        return sample_with_scheduler(denoiser, start, scheduler, steps, strength, guidance, after_step), curves

    def _denoiser(
        self, condition: Tensor, text: Tensor, empty: Tensor, settings: RestoreOptions
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """ε_θ with classifier-free guidance, ε_∅ + w·(ε_c − ε_∅) (Ho & Salimans 2022), tiled on large latents."""
        scale, channels = settings.guidance_scale, condition.shape[1]

        def one_tile(z_and_condition: Tensor, t: Tensor) -> Tensor:
            z, c = z_and_condition[:, :-channels], z_and_condition[:, -channels:]
            if scale == 1.0:
                return denoise(self.unet, self.control, z, t, text, c)
            twice = (torch.cat([x, x]) for x in (z, t, c))
            zz, tt, cc = twice
            without, with_text = denoise(self.unet, self.control, zz, tt, torch.cat([empty, text]), cc).chunk(2)
            return without + scale * (with_text - without)

        def denoiser(z_t: Tensor, t: Tensor) -> Tensor:
            joined = torch.cat([z_t.to(condition), condition], dim=1)
            return self._tiled(lambda x: one_tile(x, t), joined, settings, (1, 1), self.factor)

        return denoiser

    def _guidance(self, jobs: list[_Job], settings: RestoreOptions) -> BodyGuidance | None:
        """Eq. 6 against the regression results; None where it is off or nobody was found."""
        if settings.body_guidance_scale == 0 or not any(job.structure.crops for job in jobs):
            return None
        config = GuidanceConfig(
            scale=settings.body_guidance_scale,
            t_start=settings.body_guidance_start,
            t_stop=settings.body_guidance_stop,
            every=settings.body_guidance_every,
        )

        def decode_pixels(z: Tensor) -> Tensor:
            # A checkpoint per tile keeps the memory of a large picture's backward pass at one tile's.
            tile = lambda part: checkpoint(decode, self.vae, part, use_reentrant=False)  # noqa: E731
            return self._tiled(tile, z.to(self.vae.dtype), settings, (self.factor, 1), self.factor).float() / 2 + 0.5

        regression = torch.cat([job.regression for job in jobs])
        return BodyGuidance(self.parts, decode_pixels, regression, [job.structure.crops for job in jobs], config)

    def _finish(
        self, job: _Job, z0: Tensor, curve: list[tuple[int, float]], settings: RestoreOptions
    ) -> tuple[np.ndarray, Intermediates]:
        """Step 6: decode, correct the colours against r, bring to the asked size."""
        decoded = self._decode(z0, settings)
        if settings.use_residual:
            decoded = decoded + (job.regression - self._decode(job.z_r, settings))
        height, width = job.size
        regression = crop(to_pixels(job.regression), height, width)
        pixels = match_colour(crop(to_pixels(decoded), height, width), regression, settings.colour_fix)
        if settings.upscale is not None:
            asked_height, asked_width = (
                max(1, round(side * settings.upscale)) for side in job.picture.pixels.shape[:2]
            )
            pixels = resize(pixels, asked_height, asked_width, method="bicubic")
        found = Intermediates(
            regression=regression,
            boxes=job.structure.boxes,
            keypoints=job.structure.keypoints,
            pose=crop(to_pixels(job.structure.pose), height, width),
            attention=job.structure.attention[0, :, :height, :width].float().cpu().numpy(),
            loss_curve=curve,
        )
        return np.clip(pixels, 0.0, 1.0).astype(np.float32), found

    def _decode(self, latents: Tensor, settings: RestoreOptions) -> Tensor:
        """D(z): (1, 3, H, W) float32, about [0, 1], tiled on large latents."""
        network = lambda z: decode(self.vae, z)  # noqa: E731
        decoded = self._tiled(network, latents.to(self.vae.dtype), settings, (self.factor, 1), self.factor)
        return decoded.float() / 2 + 0.5

    @property
    def factor(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """Sides of what the stages see are multiples of this, so that the latent grid halves cleanly down the U-Net."""
        return self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _tiled(
        self,
        network: Callable[[Tensor], Tensor],
        inputs: Tensor,
        settings: RestoreOptions,
        factor: tuple[int, int],
        cell: int = 1,
    ) -> Tensor:
        """`apply_tiled` with the settings' tile size; `cell` is the pixels per cell of `inputs`."""
        assert settings.tile_size is not None  # the preset's, see options()
        step = self.multiple // cell
        tile = max(1, settings.tile_size // self.multiple) * step
        return apply_tiled(network, inputs, tile, max(step, int(tile * OVERLAP) // step * step), step, factor)


def _known(options: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(RestoreOptions)]
    for name in options:
        if name not in names:
            raise ValueError(f"unknown option {name!r}; known are {', '.join(names)}")
    return options


def _as_list(image: Any) -> list[Any]:
    return list(image) if isinstance(image, list | tuple) else [image]


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    """One value a picture, from one for all or a list."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name}: {len(values)} given for {count} pictures")
    return values


def _groups_of_equal_size(jobs: list[_Job]) -> list[list[int]]:
    """Indices of jobs that can be sampled in one batch."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault(tuple(job.z_r.shape), []).append(i)
    return list(groups.values())
