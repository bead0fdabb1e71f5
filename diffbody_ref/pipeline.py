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
from diffbody_ref.guidance import BodyGuidance
from diffbody_ref.models.control import ControlBranch, condition_latents, denoise
from diffbody_ref.models.parts import PartNet
from diffbody_ref.models.pose import PersonDetector, PoseEstimator
from diffbody_ref.models.swinir import SwinIR
from diffbody_ref.models.text import encode_prompt
from diffbody_ref.models.vae import decode, encode_mode
from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.images import ImageInput, Picture, as_picture
from diffbody_ref.ops.options import ModelSettings, RestoreOptions
from diffbody_ref.ops.processing import Sizes, postprocess, preprocess, reconstruct
from diffbody_ref.ops.results import Intermediates, notices
from diffbody_ref.ops.samplers import NoiseSource, StepInfo, initial_latents, make_schedule
from diffbody_ref.ops.tiling import Cells, in_tiles
from diffbody_ref.output import OUTPUT_TYPES, DiffBodyOutput, as_output
from diffbody_ref.sampling import generator_noise, noise_source, sample
from diffbody_ref.structure import Structure, empty_structure, structure_maps


@dataclass
class _Job:
    """One picture on its way through the stages; tensors are (1, C, H, W) of the padded working size."""

    picture: Picture
    sizes: Sizes
    regression: Tensor
    structure: Structure
    z_r: Tensor
    condition: Tensor


class DiffBodyPipeline(DiffusionPipeline):
    """Human body restoration with a diffusion prior.

    Args:
        swinir, pose_detector, pose, parts, tokenizer, text_encoder, vae, unet, control, scheduler: see
            `diffbody_ref.components`. The scheduler documents the noise schedule in the saved folder.
        base_height, base_width, tile_size, guidance_scale, body_guidance_scale, strength, use_residual: the model's
            settings, see `ops.options.ModelSettings`; several are what `None` means in a call.
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
        base_height: int = ModelSettings.base_height,
        base_width: int = ModelSettings.base_width,
        tile_size: int = ModelSettings.tile_size,
        guidance_scale: float = ModelSettings.guidance_scale,
        body_guidance_scale: float = ModelSettings.body_guidance_scale,
        strength: float = ModelSettings.strength,
        use_residual: bool = ModelSettings.use_residual,
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
        settings = dataclasses.asdict(ModelSettings.read(index))
        dtype = kwargs.pop("torch_dtype", torch.float32)
        components = {name: kwargs.pop(name, None) or load_component(folder, name, dtype) for name in COMPONENT_CLASSES}
        if kwargs:
            raise ValueError(f"unknown argument {next(iter(kwargs))!r}; components and torch_dtype can be given")
        return cls(**components, **settings)

    @property
    def settings(self) -> ModelSettings:
        """What the model says of every call on it."""
        return ModelSettings.read(self.config)

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
                body_guidance_{start,stop,every}; None is the model's value.

        Raises:
            ValueError: an unknown option, a value out of its range, or lists that differ in length.
        """
        asked = self.settings.options(**options)
        pictures = [as_picture(one) for one in _as_list(image)]
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output_type {output_type!r}, choose one of {', '.join(OUTPUT_TYPES)}")
        prompts = _one_each("prompt", prompt or "", len(pictures))
        negatives = _one_each("negative_prompt", negative_prompt or "", len(pictures))
        seeds = _one_each("seed", seed, len(pictures))
        generators = None if generator is None else _one_each("generator", generator, len(pictures))

        jobs = [self._prepare(picture, asked) for picture in pictures]
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
            latents, curves = self._sample(batch, text, empty, noise, asked, callback_on_step_end)
            for i, job, z, curve in zip(group, batch, latents, curves, strict=True):
                results[i] = self._finish(job, z[None], curve, asked)
        ordered = [results[i] for i in range(len(jobs))]
        people = [len(job.structure.crops) for job in jobs]
        return DiffBodyOutput(
            images=[
                as_output(pixels, job.picture, output_type) for (pixels, _), job in zip(ordered, jobs, strict=True)
            ],
            intermediates=[found for _, found in ordered] if return_intermediates else None,
            notices=[
                [*job.picture.notices, *notices(count, count, asked)] for job, count in zip(jobs, people, strict=True)
            ],
        )

    def _prepare(self, picture: Picture, options: RestoreOptions) -> _Job:
        """Steps 1 to 4 of the method for one picture: r, P, A and z_r."""
        sizes = Sizes.plan(picture.pixels.shape[:2], options, self.settings, self.multiple)
        low = torch.from_numpy(preprocess(picture, sizes)).to(self.device, self.swinir.dtype)
        regression = self._tiled(self.swinir, low, options, (1, 1)).clamp(0, 1)
        if options.use_structure:
            structure = structure_maps(self.pose_detector, self.pose, self.parts, regression)
        else:
            structure = empty_structure(regression, len(self.parts.part_names))
        encode = lambda x: encode_mode(self.vae, x * 2 - 1)  # noqa: E731
        z_r = self._tiled(encode, regression.to(self.vae.dtype), options, (1, self.factor))
        pose, attention = structure.pose * options.use_pose, structure.attention * options.use_attention
        condition = condition_latents(z_r, pose.to(z_r), attention.to(z_r))
        return _Job(picture, sizes, regression, structure, z_r.float(), condition)

    def _sample(
        self,
        jobs: list[_Job],
        text: Tensor,
        empty: Tensor,
        noise: NoiseSource,
        options: RestoreOptions,
        callback: Callable[[Any, int, int, dict[str, Tensor]], Any] | None,
    ) -> tuple[Tensor, list[list[tuple[int, float]]]]:
        """Step 5, algorithm 1: z_0 (B, C, h, w) float32 and the loss curves of a batch of equal size."""
        denoiser = self._denoiser(torch.cat([job.condition for job in jobs]), text, empty, options)
        curves: list[list[tuple[int, float]]] = [[] for _ in jobs]

        def after_step(info: StepInfo) -> None:
            if info.loss is not None:
                for curve, loss, job in zip(curves, info.loss.tolist(), jobs, strict=True):
                    if job.structure.crops:
                        curve.append((info.timestep, loss))
            if callback is not None:
                callback(self, info.step, info.timestep, {"latents": info.latents, "z0": info.z0})

        schedule = make_schedule(options.sampler, options.num_inference_steps, options.strength)
        start = initial_latents(schedule, torch.cat([job.z_r for job in jobs]), noise, options.strength)
        return sample(denoiser, start, schedule, noise, self._guidance(jobs, options), after_step), curves

    def _denoiser(
        self, condition: Tensor, text: Tensor, empty: Tensor, options: RestoreOptions
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """ε_θ with classifier-free guidance, ε_∅ + w·(ε_c − ε_∅) (Ho & Salimans 2022), tiled on large latents."""
        scale = options.guidance_scale
        # Another memory layout is another kernel, with other rounding: what goes in is contiguous whatever came out.
        condition = condition.contiguous()

        def one_tile(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
            if scale == 1.0:
                return denoise(self.unet, self.control, z, t, text, c)
            zz, tt, cc = (torch.cat([x, x]) for x in (z, t, c))
            without, with_text = denoise(self.unet, self.control, zz, tt, torch.cat([empty, text]), cc).chunk(2)
            return without + scale * (with_text - without)

        def denoiser(z_t: Tensor, t: Tensor) -> Tensor:
            z = z_t.to(condition).contiguous()
            network = lambda cells: one_tile(z[cells], t, condition[cells])  # noqa: E731
            return in_tiles(network, z.shape[2:], options.tile_size, self.multiple, cell=self.factor)

        return denoiser

    def _guidance(self, jobs: list[_Job], options: RestoreOptions) -> BodyGuidance | None:
        """Eq. 6 against the regression results; None where it is off or nobody was found."""
        if options.body_guidance_scale == 0 or not any(job.structure.crops for job in jobs):
            return None
        # A checkpoint per tile keeps the memory of a large picture's backward pass at one tile's.
        network = lambda z: checkpoint(decode, self.vae, z, use_reentrant=False)  # noqa: E731
        return BodyGuidance(
            self.parts,
            lambda z: self._decode(z, options, network),
            torch.cat([job.regression for job in jobs]),
            [job.structure.crops for job in jobs],
            options,
        )

    def _finish(
        self, job: _Job, z0: Tensor, curve: list[tuple[int, float]], options: RestoreOptions
    ) -> tuple[np.ndarray, Intermediates]:
        """Step 6: decode, correct the colours against r, bring to the asked size."""
        decoded = reconstruct(lambda z: self._decode(z, options), z0, job.z_r, job.regression, options)
        decoded, regression, pose, attention = (
            tensor.float().cpu().numpy()
            for tensor in (decoded, job.regression, job.structure.pose, job.structure.attention)
        )
        found = Intermediates.without_padding(
            job.sizes, regression, job.structure.boxes, job.structure.keypoints, pose, attention, curve
        )
        return postprocess(decoded, regression, job.sizes, options), found

    def _decode(
        self, latents: Tensor, options: RestoreOptions, network: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """D(z): (B, 3, H, W) float32, about [0, 1], tiled on large latents; `network` stands in for the decoder."""
        run = network or (lambda z: decode(self.vae, z))
        return self._tiled(run, latents.to(self.vae.dtype), options, (self.factor, 1), self.factor).float() / 2 + 0.5

    @property
    def geometry(self) -> Geometry:
        """The numbers that tie the stages together."""
        return Geometry(
            multiple=self.multiple,
            factor=self.factor,
            latent_channels=self.vae.config.latent_channels,
            text_length=self.text_encoder.config.max_position_embeddings,
            detector_size=self.pose_detector.config.size,
            pose_height=self.pose.config.height,
            pose_width=self.pose.config.width,
            part_names=tuple(self.parts.part_names),
        )

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
        options: RestoreOptions,
        factor: tuple[int, int],
        cell: int = 1,
    ) -> Tensor:
        """`network(inputs)`, tile by tile where they are large; see `ops.tiling.in_tiles`."""

        def one_tile(cells: Cells) -> Tensor:
            return network(inputs[cells])

        return in_tiles(one_tile, inputs.shape[2:], options.tile_size, self.multiple, factor, cell)


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
