"""DiffBodyPipeline: a degraded picture of people in, a restored one out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from diffbody_ref.callbacks import CALLBACK_TENSORS, InterruptedSamplingError, StepCallback, StepEnd
from diffbody_ref.calls import Call
from diffbody_ref.components import COMPONENT_CLASSES, OPTIONAL, load_components, read_settings
from diffbody_ref.conditioning import Prompting, Text
from diffbody_ref.facts import ModelFacts
from diffbody_ref.guidance import BodyGuidance
from diffbody_ref.habits import DiffusersHabits
from diffbody_ref.models.control import ControlBranch, condition_latents, denoise
from diffbody_ref.models.parts import PartNet
from diffbody_ref.models.pose import PersonDetector, PoseEstimator
from diffbody_ref.models.swinir import SwinIR
from diffbody_ref.models.vae import decode, encode_mode
from diffbody_ref.ops.images import ImageInput, Picture
from diffbody_ref.ops.options import ModelSettings, RestoreOptions
from diffbody_ref.ops.processing import Sizes, postprocess, preprocess, reconstruct
from diffbody_ref.ops.results import Intermediates, guidance_notices, notices
from diffbody_ref.ops.samplers import NoiseSource, StepInfo, initial_latents, make_schedule
from diffbody_ref.ops.tiling import Cells, in_tiles
from diffbody_ref.output import DiffBodyOutput, as_output
from diffbody_ref.sampling import sample
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


@dataclass
class _Sampled:
    """What sampling gave for one result: z_0 (1, C, h, w) float32, the loss curve, and notices."""

    z0: Tensor
    curve: list[tuple[int, float]]
    notices: list[str]


class DiffBodyPipeline(ModelFacts, DiffusersHabits, DiffusionPipeline):
    """Human body restoration with a diffusion prior. `docs/diffusers.md` says which of diffusers' habits it follows.

    Args:
        tokenizer, text_encoder, vae, unet, control, scheduler, swinir, pose_detector, pose, parts: see
            `diffbody_ref.components`. The scheduler's configuration says what the denoiser predicts and of how much
            noise; its class is the sampler of calls that name none. See `diffbody_ref.schedulers`. The last four may
            be None: the least is Stable Diffusion and a control branch, which is DiffBIR's method.
        base_height, base_width, tile_size, guidance_scale, body_guidance_scale, strength, use_residual: the model's
            settings, see `ops.options.ModelSettings`; several are what `None` means in a call.
    """

    model_cpu_offload_seq = "swinir->pose_detector->pose->parts->text_encoder->vae->control->unet->vae"
    _callback_tensor_inputs = CALLBACK_TENSORS
    _optional_components: ClassVar[list[str]] = [*OPTIONAL]

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        control: ControlBranch,
        scheduler: SchedulerMixin,
        swinir: SwinIR | None = None,
        pose_detector: PersonDetector | None = None,
        pose: PoseEstimator | None = None,
        parts: PartNet | None = None,
        base_height: int = ModelSettings.base_height,
        base_width: int = ModelSettings.base_width,
        tile_size: int = ModelSettings.tile_size,
        guidance_scale: float = ModelSettings.guidance_scale,
        body_guidance_scale: float = ModelSettings.body_guidance_scale,
        strength: float = ModelSettings.strength,
        use_residual: bool = ModelSettings.use_residual,
    ) -> None:
        super().__init__()
        if parts is not None and len(parts.part_names) != control.config.part_count:
            raise ValueError(
                f"the part network has {len(parts.part_names)} parts, the control branch reads attention maps of "
                f"{control.config.part_count}; `diffbody release` fits a branch that was not trained with any"
            )
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
        self.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a folder in diffusers' layout. Components in safetensors; no code from the folder is run.

        Components are of the classes that `diffbody_ref.components` names, whatever the folder's index says; one given
        as a keyword replaces the folder's; None leaves it out, if the pipeline can do without.

        Raises:
            FileNotFoundError: no such folder, or a component is missing.
            ValueError: a setting or a component that is none, or an unknown keyword.
        """
        folder = Path(pretrained_model_name_or_path)
        settings = read_settings(folder).of_pipeline()
        dtype = kwargs.pop("torch_dtype", torch.float32)
        given = {name: kwargs.pop(name) for name in COMPONENT_CLASSES if name in kwargs}
        components = load_components(folder, dtype, given)
        if kwargs:
            raise ValueError(f"unknown argument {next(iter(kwargs))!r}; components and torch_dtype can be given")
        return cls(**components, **settings)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Tensor | Sequence[ImageInput | Tensor],
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents", "z0"),
        output_type: str = "pil",
        return_intermediates: bool = False,
        return_dict: bool = True,
        **options: Any,
    ) -> DiffBodyOutput | tuple[Any, ...]:
        """Restore one picture or several.

        Args:
            image: PIL picture (any mode; EXIF orientation is applied), float array (H, W, 3) or tensor (3, H, W) in
                [0, 1], `Picture` of `ops.images`, a batch (B, …) of arrays or tensors, or a list of these. Any size
                from 16×16.
            prompt, negative_prompt: a caption, or one a picture; None is empty. Any length; see `ops.prompts`.
            prompt_embeds, negative_prompt_embeds: text embeddings (1 or one a picture, L, D) in their place.
            num_images_per_prompt: results of each picture, whose seeds count on from the picture's.
            seed: one for all pictures, or one a picture. Noise comes from it by Philox, as everywhere in this project.
            generator: torch generators instead of the seed, one for all or one a picture.
            callback_on_step_end: called as (pipeline, step, timestep, tensors) after each step. What it returns in a
                dictionary takes the place of latents, prompt_embeds or negative_prompt_embeds. If it sets
                `pipeline._interrupt`, sampling ends: the results are the predictions z̃_0 of that step. An exception
                from it ends the call.
            callback_on_step_end_tensor_inputs: names of the tensors that it gets, of `CALLBACK_TENSORS`.
            output_type: "pil" (RGBA where the input had alpha), "np" (float32 (H, W, 3)), "pt" ((3, H, W)), or "latent"
                (z_0, float32 (C, h, w) of the padded working size).
            return_intermediates: also return what the stages found.
            return_dict: False returns the output's fields as a tuple, the pictures first.
            **options: fields of `RestoreOptions`: num_inference_steps, guidance_scale, body_guidance_scale, strength,
                sampler, colour_fix, use_residual, upscale, use_{structure,pose,attention}, tile_size,
                body_guidance_{start,stop,every}; None is the model's value.

        Raises:
            ValueError: an unknown option, a value out of its range, lists that differ in length, or a scheduler that
                cannot be honoured.
        """
        asked = self.settings.options(**options)
        width = self.unet.config.cross_attention_dim
        embeds = prompt_embeds, negative_prompt_embeds
        call = Call.read(
            image, prompt, negative_prompt, *embeds, num_images_per_prompt, seed, generator, output_type, width
        )
        callback = StepCallback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._interrupt = False
        try:
            said = guidance_notices(options, self.lacking)
            output = self._restore(call, asked, callback, return_intermediates, said)
        finally:
            self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def _restore(
        self, call: Call, options: RestoreOptions, callback: StepCallback, with_found: bool, said: list[str]
    ) -> DiffBodyOutput:
        prompting = Prompting(self.tokenizer, self.text_encoder, call, options.guidance_scale)
        prepared = [self._prepare(picture, options) for picture in call.pictures]
        jobs = [prepared[source] for source in call.sources]
        sampled: dict[int, _Sampled] = {}
        for group in _groups([(*job.z_r.shape, prompting.chunks(place)) for place, job in enumerate(jobs)]):
            batch, text = [jobs[i] for i in group], prompting.text(group, self._execution_device, self.unet.dtype)
            noise = call.noise(group, batch[0].z_r.shape[1:], self._execution_device)
            results = self._sample(batch, text, noise, options, callback)
            sampled.update(zip(group, results, strict=True))
        images, told = [], []
        for place, job in enumerate(jobs):
            images.append(self._finish(job, sampled[place].z0, options, call.output_type))
            people = len(job.structure.crops)
            of_restoring = notices(people, people, options, self.lacking) + said
            told.append([*job.picture.notices, *of_restoring, *prompting.notices(place), *sampled[place].notices])
        found = [_found(job, sampled[place].curve) for place, job in enumerate(jobs)] if with_found else None
        return DiffBodyOutput(images, found, told)

    def _prepare(self, picture: Picture, options: RestoreOptions) -> _Job:
        """Steps 1 to 4 of the method for one picture: r, P, A and z_r."""
        sizes = Sizes.plan(picture.pixels.shape[:2], options, self.settings, self.multiple)
        low = torch.from_numpy(preprocess(picture, sizes)).to(self._execution_device, self.vae.dtype)
        regression = low if self.swinir is None else self._tiled(self.swinir, low, options, (1, 1)).clamp(0, 1)
        part_count = self.control.config.part_count
        if options.use_structure:
            structure = structure_maps(self.pose_detector, self.pose, self.parts, regression, part_count)
        else:
            structure = empty_structure(regression, part_count)
        encode = lambda x: encode_mode(self.vae, x * 2 - 1)  # noqa: E731
        z_r = self._tiled(encode, regression.to(self.vae.dtype), options, (1, self.factor))
        pose, attention = structure.pose * options.use_pose, structure.attention * options.use_attention
        condition = condition_latents(z_r, pose.to(z_r), attention.to(z_r))
        return _Job(picture, sizes, regression, structure, z_r.float(), condition)

    def _sample(
        self,
        jobs: list[_Job],
        text: Text,
        noise: NoiseSource,
        options: RestoreOptions,
        callback: StepCallback,
    ) -> list[_Sampled]:
        """Step 5, algorithm 1, of a batch of equal size; a callback may steer and end it."""
        curves: list[list[tuple[int, float]]] = [[] for _ in jobs]
        process = self.noise_process
        schedule = make_schedule(options.sampler, options.num_inference_steps, options.strength, process)
        z_r = torch.cat([job.z_r for job in jobs])

        def after_step(info: StepInfo) -> Tensor | None:
            bar.update()
            if info.loss is not None:
                for curve, loss, job in zip(curves, info.loss.tolist(), jobs, strict=True):
                    if job.structure.crops:
                        curve.append((info.timestep, loss))
            latents = callback(self, info, text)
            if self._interrupt and info.step + 1 < len(schedule):
                raise InterruptedSamplingError(info.z0, info.step + 1)
            return latents

        told = []
        with self.progress_bar(total=len(schedule)) as bar:
            try:
                if self._interrupt:  # in the batch before
                    raise InterruptedSamplingError(z_r, 0)
                denoiser = self._denoiser(torch.cat([job.condition for job in jobs]), text, options)
                start = initial_latents(schedule, z_r, noise, options.strength)
                z0 = sample(denoiser, start, schedule, noise, self._guidance(jobs, options), after_step)
            except InterruptedSamplingError as stop:
                z0, told = stop.z0, [f"interrupted after {stop.steps} of {len(schedule)} steps"]
        return [_Sampled(z[None], curve, told) for z, curve in zip(z0, curves, strict=True)]

    def _denoiser(self, condition: Tensor, text: Text, options: RestoreOptions) -> Callable[[Tensor, Tensor], Tensor]:
        """ε_θ with classifier-free guidance, ε_∅ + w·(ε_c − ε_∅) (Ho & Salimans 2022), tiled on large latents.

        Of v or z_0, which are linear in ε, the same mixture is the same guidance.
        """
        scale = options.guidance_scale
        # Another memory layout is another kernel, with other rounding: what goes in is contiguous whatever came out.
        condition = condition.contiguous()

        def one_tile(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
            embeds, empty = text.prompt_embeds, text.negative_prompt_embeds
            if empty is None:
                return denoise(self.unet, self.control, z, t, embeds, c)
            zz, tt, cc = (torch.cat([x, x]) for x in (z, t, c))
            without, with_text = denoise(self.unet, self.control, zz, tt, torch.cat([empty, embeds]), cc).chunk(2)
            return without + scale * (with_text - without)

        def denoiser(z_t: Tensor, t: Tensor) -> Tensor:
            z = z_t.to(condition).contiguous()
            network = lambda cells: one_tile(z[cells], t, condition[cells])  # noqa: E731
            return in_tiles(network, z.shape[2:], options.tile_size, self.multiple, cell=self.factor)

        return denoiser

    def _guidance(self, jobs: list[_Job], options: RestoreOptions) -> BodyGuidance | None:
        """Eq. 6 against the regression results; None where it is off, nobody was found, or there is no part network."""
        nobody = not any(job.structure.crops for job in jobs)
        if options.body_guidance_scale == 0 or nobody or self.parts is None:
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

    def _finish(self, job: _Job, z0: Tensor, options: RestoreOptions, output_type: str) -> Any:
        """Step 6: decode, correct the colours against r, bring to the asked size."""
        if output_type == "latent":
            return z0[0]
        decoded = reconstruct(lambda z: self._decode(z, options), z0, job.z_r, job.regression, options)
        pixels = postprocess(_to_numpy(decoded), _to_numpy(job.regression), job.sizes, options)
        return as_output(pixels, job.picture, output_type)

    def _decode(
        self, latents: Tensor, options: RestoreOptions, network: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """D(z): (B, 3, H, W) float32, about [0, 1], tiled on large latents; `network` stands in for the decoder."""
        run = network or (lambda z: decode(self.vae, z))
        return self._tiled(run, latents.to(self.vae.dtype), options, (self.factor, 1), self.factor).float() / 2 + 0.5

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


def _found(job: _Job, curve: list[tuple[int, float]]) -> Intermediates:
    regression, pose, attention = map(_to_numpy, (job.regression, job.structure.pose, job.structure.attention))
    structure = job.structure
    return Intermediates.without_padding(
        job.sizes, regression, structure.boxes, structure.keypoints, pose, attention, curve
    )


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _groups(keys: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Places of equal keys: results that can be sampled in one batch."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())
