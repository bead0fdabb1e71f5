"""The stage of text encoder, U-Net and control branch, equation 4: ‖ε − ε_θ(z_t, t, c, z_r, P, A)‖².

Where the pipeline's scheduler says so, the target is v or z_0 instead of ε, and the noise that of other betas.

The frozen networks (SwinIR, VAE encoder, pose and part networks) run once over the data before training, on
`config.variants` degradations per picture; their outputs are kept beside the checkpoints. If the text encoder is
frozen, the captions are encoded in the same way.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffbody_ref.components import load_or_build_component, usual_part_count
from diffbody_ref.data.datasets import content_checksum
from diffbody_ref.models.control import ControlBranch, condition_latents, denoise
from diffbody_ref.models.text import encode_prompt
from diffbody_ref.models.vae import decode
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.ops.results import FINDERS
from diffbody_ref.ops.samplers import PREDICTIONS, make_schedule
from diffbody_ref.sampling import noise_source, sample
from diffbody_ref.schedulers import noise_process_of
from diffbody_ref.structure import batch_structure_maps
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.crops import degraded_pair
from diffbody_ref.training.disk import writing
from diffbody_ref.training.encoded import EncodedRows, encode_missing, networks_checksum
from diffbody_ref.training.loaders import Arrays
from diffbody_ref.training.lora import FOLDER as LORA_FOLDER
from diffbody_ref.training.lora import add_lora, save_lora
from diffbody_ref.training.stages.base import TrainingStage, channels_first, grid

PREVIEW_STEPS = 20
PREVIEWS = 4
MAX_ENCODING_BATCH = 16  # pictures; fewer if a training batch is smaller
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

DENOISER = ("text_encoder", "unet", "control")
TRAINED = {"full": DENOISER, "control": ("control",), "lora": ("control",)}
ENCODERS = ("swinir", "vae", "pose_detector", "pose", "parts")


class DiffusionStage(TrainingStage):
    """Trains text encoder, U-Net and control branch, or those of them that `config.tuning` selects."""

    configured = ("tokenizer", "scheduler")
    swinir: Any  # None once the data is encoded, like the other encoders
    text_encoder: Any

    @classmethod
    def components(cls, config: TrainConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
        trained, folder = TRAINED[config.tuning], Path(config.pipeline)
        encoders = [name for name in ENCODERS if config.structure or name not in FINDERS or (folder / name).is_dir()]
        return trained, (*encoders, *(name for name in DENOISER if name not in trained))

    def __init__(self, config: TrainConfig) -> None:
        """
        Raises:
            FileNotFoundError: the pipeline's folder lacks a network that the stage builds on.
            ValueError: a component that is none.
        """
        pipeline = Path(config.pipeline)
        absent = [name for name in FINDERS if not (pipeline / name).is_dir()]
        if config.structure and absent:
            raise FileNotFoundError(
                f"{pipeline}: no component {absent[0]!r} there; train or import it first, or set structure = false, "
                "which trains without pose and attention"
            )
        super().__init__(config)
        for name in absent:
            setattr(self, name, None)
        self.tokenizer, scheduler = (load_or_build_component(pipeline, name, config.preset) for name in self.configured)
        self.process = noise_process_of(scheduler)
        self.register_buffer("alphas_cumprod", torch.tensor(self.process.alphas_cumprod), persistent=False)
        self.texts: EncodedRows | None = None
        if "unet" in self.frozen and self._mixed:
            torch.nn.Module.to(self.unet, PRECISIONS[config.mixed_precision])  # diffusers' own `to` warns for nothing
        if config.tuning == "lora":
            add_lora(self.unet, pipeline, config.lora_rank)
        elif (pipeline / LORA_FOLDER).exists():
            raise ValueError(
                f"{pipeline / LORA_FOLDER}: the control branch there was trained with these LoRA weights; move both "
                "away, or train with tuning = 'lora'"
            )

    def load_or_build(self, name: str) -> Any:
        """A component to train; a fresh control branch is a copy of the U-Net that it controls."""
        if name == "control" and not (Path(self.config.pipeline) / name).is_dir():
            if (part_net := getattr(self, "parts", None)) is not None:
                return ControlBranch.from_unet(self.unet, len(part_net.part_names))
            return ControlBranch.from_unet(self.unet, usual_part_count(self.config.preset))
        return super().load_or_build(name)

    def notices(self) -> list[str]:
        """Captions are read as far as one chunk of the text encoder goes, unlike prompts (`ops.prompts`)."""
        most = self.tokenizer.model_max_length
        captions = [self.people.caption(index) for index in range(len(self.people))]
        counts = [len(ids) for ids in self.tokenizer(captions, verbose=False)["input_ids"]]
        cut = sum(count > most for count in counts)
        if not cut:
            return []
        return [f"{cut} of {len(counts)} captions are longer than {most - 2} tokens: training read their beginnings"]

    def checkpoint_gradients(self) -> None:
        super().checkpoint_gradients()
        self.unet.enable_gradient_checkpointing()  # the control branch's gradient passes through it, even if frozen

    def compiled(self) -> list[torch.nn.Module]:
        return [self.unet, self.control]

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.config.seed, epoch]).permutation(len(self.people) * self.config.variants)

    def prepare(self, accelerator: Any, progress: Progress = silent) -> None:
        """Encode the data, then release the networks that only the encoding needs, to free the GPU's memory."""
        config, folder = self.config, Path(self.config.output) / "encoded"
        self.to(accelerator.device)
        rows = len(self.people) * config.variants
        training_batch = config.batch_size // config.accumulation // accelerator.num_processes
        common = (accelerator, max(1, min(MAX_ENCODING_BATCH, training_batch)), config.workers)
        self.encoded = EncodedRows(folder / "pictures", rows, self._picture_settings(accelerator, progress))
        encode_missing(self.encoded, self._pair, self._encode_pictures, *common, "encoding pictures", progress)
        for name in ("swinir", "pose_detector", "pose", "parts"):
            setattr(self, name, None)
        if config.cache_text and "text_encoder" in self.frozen:
            # The pictures' captions, then the empty caption.
            self.captions = [*(self.people.caption(index) for index in range(len(self.people))), ""]
            tokens = (self._token_ids(caption).tobytes().hex() for caption in self.captions)
            networks = networks_checksum(Path(config.pipeline), ["text_encoder"])
            settings = {"captions": content_checksum(tokens), "networks": networks}
            self.texts = EncodedRows(folder / "captions", len(self.captions), settings)
            encode_missing(self.texts, self._tokens, self._encode_captions, *common, "encoding captions", progress)
            self.text_encoder = None

    def _picture_settings(self, accelerator: Any, progress: Progress) -> dict[str, Any]:
        """Everything that an encoded picture depends on: contents, whatever their files are called."""
        config = self.config
        return {
            "pictures": content_checksum(content.picture for content in self.contents(accelerator, progress)),
            "size": self.people.size,
            "seed": config.seed,
            "variants": config.variants,
            "structure": config.structure,
            "degradation": dataclasses.asdict(config.degradation),
            "networks": networks_checksum(Path(config.pipeline), ENCODERS),
        }

    def _pair(self, row: int) -> Arrays:
        """The input of the encoders for a row; row i·variants + v is picture i with its degradation number v."""
        index, variant = divmod(row, self.config.variants)
        rng = np.random.default_rng([self.config.seed, 2, index, variant])
        high, low = degraded_pair(self.people[index].picture, rng, self.config)
        return {"high": channels_first(high), "low": channels_first(low)}

    @torch.no_grad()
    def _encode_pictures(self, batch: dict[str, torch.Tensor]) -> list[Arrays]:
        regression = self.swinir(batch["low"]).clamp(0, 1)
        posterior = self.vae.encode(batch["high"] * 2 - 1).latent_dist
        z_r = self.vae.encode(regression * 2 - 1).latent_dist.mode() * self.vae.config.scaling_factor
        finders = self.pose_detector, self.pose, self.parts
        maps = batch_structure_maps(*finders, regression, self.control.config.part_count)
        pose, attention = (torch.cat([getattr(m, name) for m in maps]) for name in ("pose", "attention"))
        use_structure = 1.0 if self.config.structure else 0.0
        arrays = {
            "mean": posterior.mean,
            "std": posterior.std,
            "condition": condition_latents(z_r, use_structure * pose, use_structure * attention),
        }
        rows = {name: value.float().cpu().numpy() for name, value in arrays.items()}
        return [{name: value[i] for name, value in rows.items()} for i in range(len(regression))]

    def _tokens(self, row: int) -> Arrays:
        return {"tokens": self._token_ids(self.captions[row])}

    def _token_ids(self, caption: str) -> np.ndarray:
        """The caption's token ids, int64 (77,)."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(caption, padding="max_length", truncation=True, max_length=length)
        return np.asarray(tokens["input_ids"], np.int64)

    @torch.no_grad()
    def _encode_captions(self, batch: dict[str, torch.Tensor]) -> list[Arrays]:
        texts = self.text_encoder(batch["tokens"]).last_hidden_state
        return [{"text": text} for text in texts.float().cpu().numpy()]

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng = self.random(serial)
        row, person = self.encoded.read(index), index // self.config.variants
        dropped = rng.random() < self.config.caption_dropout
        draw = rng.standard_normal(row["mean"].shape, dtype=np.float32)
        latents = (row["mean"] + row["std"] * draw) * self.vae.config.scaling_factor
        if self.texts is not None:
            text = self.texts.read(len(self.people) if dropped else person)
        else:
            text = {"tokens": self._token_ids("" if dropped else self.people.caption(person))}
        return {
            "latents": latents.astype(np.float32),
            "condition": row["condition"],
            "noise": rng.standard_normal(latents.shape, dtype=np.float32),
            "timestep": np.asarray(len(self.alphas_cumprod) * rng.random() ** self.config.timestep_power, np.int64),
            **text,
        }

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        a = self.alphas_cumprod[batch["timestep"]][:, None, None, None]
        signal, noise, prediction = a.sqrt(), (1 - a).sqrt(), PREDICTIONS[self.process.prediction_type]
        z_t = signal * batch["latents"] + noise * batch["noise"]
        text = batch["text"] if self.texts is not None else self.text_encoder(batch["tokens"]).last_hidden_state
        output = denoise(self.unet, self.control, z_t, batch["timestep"], text, batch["condition"])
        target = prediction.target(signal, noise, batch["latents"], batch["noise"])
        errors = (output.float() - target).square().mean(dim=(1, 2, 3))
        if self.config.snr_gamma > 0:
            # min-SNR-γ weights the squared error of z_0 by min(SNR, γ): that of ε by min(SNR, γ)/SNR, that of v by
            # min(SNR, γ)/(SNR + 1), which is 0 at a zero terminal SNR.
            snr = (a / (1 - a)).flatten()
            errors = errors * snr.clamp(max=self.config.snr_gamma) / prediction.error_scale(snr)
        return {"loss": errors.mean()}

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """Columns: encoded regression result, a restoration in `PREVIEW_STEPS` steps, encoded original."""
        condition, latents = batch["condition"][:PREVIEWS], batch["latents"][:PREVIEWS]
        text = self._empty_text(latents.device).expand(len(latents), -1, -1)

        def denoiser(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return denoise(self.unet, self.control, z_t, t, text, condition)

        noise = noise_source(range(len(latents)), tuple(latents.shape[1:]), latents.device)
        self.eval()
        with torch.autocast(latents.device.type, PRECISIONS[self.config.mixed_precision], self._mixed):
            restored = sample(denoiser, noise(0), make_schedule("ddpm", PREVIEW_STEPS, process=self.process), noise)
        self.train()
        z_r = condition[:, : latents.shape[1]]
        return grid([decode(self.vae, z.float()) / 2 + 0.5 for z in (z_r, restored, latents)], count=PREVIEWS)

    def _empty_text(self, device: torch.device) -> torch.Tensor:
        """The embedding of the empty caption, (1, 77, D)."""
        if self.texts is None:
            return encode_prompt(self.tokenizer, self.text_encoder, [""])
        return torch.from_numpy(self.texts.read(len(self.people))["text"]).to(device)[None]

    @property
    def _mixed(self) -> bool:
        return self.config.mixed_precision != "no"

    def finish(self, pipeline: Path) -> None:
        super().finish(pipeline)
        if self.config.tuning == "lora":
            with writing(pipeline / LORA_FOLDER):
                save_lora(self.unet, pipeline)
