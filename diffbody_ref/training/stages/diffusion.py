"""Text encoder, U-Net and control branch, equation 4: ‖ε − ε_θ(z_t, t, c, z_r, P, A)‖².

The frozen parts (SwinIR, VAE encoder, pose, part network) run once over the data before training: `config.variants`
degradations a picture, kept in memory-mapped files beside the checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from diffbody_ref.components import load_or_build_component
from diffbody_ref.models.control import condition_latents, denoise
from diffbody_ref.models.text import encode_prompt
from diffbody_ref.models.vae import decode
from diffbody_ref.ops.schedule import alphas_cumprod, ddpm_schedule
from diffbody_ref.sampling import noise_source, sample_ddpm
from diffbody_ref.structure import structure_maps
from diffbody_ref.training.stages.base import Stage, channels_first, degraded_pair, grid

PREVIEW_STEPS = 20
PREVIEWS = 4


class DiffusionStage(Stage):
    """Trains `text_encoder`, `unet` and `control` jointly."""

    trained = ("text_encoder", "unet", "control")
    frozen = ("swinir", "vae", "pose_detector", "pose", "parts")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.tokenizer = load_or_build_component(Path(config.pipeline), "tokenizer", config.preset)
        self.register_buffer("alphas_cumprod", torch.from_numpy(alphas_cumprod()).float(), persistent=False)

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.config.seed, epoch]).permutation(len(self.people) * self.config.variants)

    def prepare(self, accelerator: Any) -> None:
        """Encode picture i, variant v to row i·variants + v of the memory-mapped files; rows already done are kept."""
        with accelerator.main_process_first():
            self.encoded = EncodedPeople(Path(self.config.output) / "encoded", len(self.people) * self.config.variants)
            if accelerator.is_main_process:
                self.to(accelerator.device)
                missing = self.encoded.missing()
                for row in track(missing, description="encoding", disable=not len(missing)):
                    self.encoded.write(int(row), self._encode(int(row)))

    @torch.no_grad()
    def _encode(self, row: int) -> dict[str, np.ndarray]:
        index, variant = divmod(row, self.config.variants)
        person = self.people[index]
        rng = np.random.default_rng([self.config.seed, 2, index, variant])
        high, low = degraded_pair(person.picture, rng, self.config)
        device = self.alphas_cumprod.device
        x, y = (torch.from_numpy(channels_first(p))[None].to(device) for p in (high, low))
        regression = self.swinir(y).clamp(0, 1)
        posterior = self.vae.encode(x * 2 - 1).latent_dist
        z_r = self.vae.encode(regression * 2 - 1).latent_dist.mode() * self.vae.config.scaling_factor
        maps = structure_maps(self.pose_detector, self.pose, self.parts, regression)
        pose, attention = (maps.pose, maps.attention) if self.config.structure else (0 * maps.pose, 0 * maps.attention)
        return {
            "mean": posterior.mean[0].cpu().numpy(),
            "std": posterior.std[0].cpu().numpy(),
            "condition": condition_latents(z_r, pose, attention)[0].cpu().numpy(),
        }

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng = self.random(serial)
        row = self.encoded.read(index)
        mean = row["mean"]
        caption = (
            "" if rng.random() < self.config.caption_dropout else self.people.caption(index // self.config.variants)
        )
        tokens = self.tokenizer(
            caption, padding="max_length", truncation=True, max_length=self.tokenizer.model_max_length
        )
        latents = (
            mean + row["std"] * rng.standard_normal(mean.shape, dtype=np.float32)
        ) * self.vae.config.scaling_factor
        return {
            "latents": latents.astype(np.float32),
            "condition": row["condition"],
            "tokens": np.asarray(tokens["input_ids"], np.int64),
            "noise": rng.standard_normal(mean.shape, dtype=np.float32),
            "timestep": np.asarray(rng.integers(len(self.alphas_cumprod)), np.int64),
        }

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        a = self.alphas_cumprod[batch["timestep"]][:, None, None, None]
        z_t = a.sqrt() * batch["latents"] + (1 - a).sqrt() * batch["noise"]
        text = self.text_encoder(batch["tokens"]).last_hidden_state
        eps = denoise(self.unet, self.control, z_t, batch["timestep"], text, batch["condition"])
        errors = (eps.float() - batch["noise"]).square().mean(dim=(1, 2, 3))
        if self.config.snr_gamma > 0:
            # For ε-prediction min-SNR-γ weighs by min(SNR, γ)/SNR.
            snr = (a / (1 - a)).flatten()
            errors = errors * snr.clamp(max=self.config.snr_gamma) / snr
        return {"loss": errors.mean()}

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """Columns: encoded regression result, a restoration in `PREVIEW_STEPS` steps, encoded original."""
        condition, latents = batch["condition"][:PREVIEWS], batch["latents"][:PREVIEWS]
        text = encode_prompt(self.tokenizer, self.text_encoder, [""] * len(latents))

        def denoiser(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return denoise(self.unet, self.control, z_t, t, text, condition)

        noise = noise_source(range(len(latents)), tuple(latents.shape[1:]), latents.device)
        self.eval()
        restored = sample_ddpm(denoiser, noise(0), ddpm_schedule(PREVIEW_STEPS), noise)
        self.train()
        z_r = condition[:, : latents.shape[1]]
        return grid([decode(self.vae, z) / 2 + 0.5 for z in (z_r, restored, latents)], count=PREVIEWS)


class EncodedPeople:
    """Rows of float16 arrays in memory-mapped files, and a file that says which rows are done."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "done.npy").exists():
            np.save(folder / "done.npy", np.zeros(rows, np.bool_))
        self.done = np.load(folder / "done.npy", mmap_mode="r+")
        if len(self.done) != rows:
            raise ValueError(
                f"{folder}: holds {len(self.done)} encoded rows, the data has {rows}; remove the folder to encode anew"
            )
        self._arrays: dict[str, np.ndarray] = {
            path.stem: np.load(path, mmap_mode="r+") for path in folder.glob("*.npy") if path.stem != "done"
        }

    def missing(self) -> np.ndarray:
        return np.flatnonzero(~self.done)

    def write(self, row: int, values: dict[str, np.ndarray]) -> None:
        for name, value in values.items():
            if name not in self._arrays:
                self._arrays[name] = np.lib.format.open_memmap(
                    self.folder / f"{name}.npy", mode="w+", dtype=np.float16, shape=(self.rows, *value.shape)
                )
            self._arrays[name][row] = value
        self.done[row] = True

    def read(self, row: int) -> dict[str, np.ndarray]:
        return {name: array[row].astype(np.float32) for name, array in self._arrays.items()}
