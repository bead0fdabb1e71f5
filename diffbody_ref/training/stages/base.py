"""What every training stage is: components, items, a loss, a preview."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffbody_ref.components import load_component, load_or_build_component, save_component
from diffbody_ref.data.datasets import PeopleFolder
from diffbody_ref.data.degradations import degrade
from diffbody_ref.ops.images import resize
from diffbody_ref.ops.options import check_preset
from diffbody_ref.training.config import TrainConfig


class Stage(nn.Module):
    """A trainable module over pipeline components.

    A subclass names the components it trains (`trained`, found in the pipeline folder or built fresh) and those it
    only uses (`frozen`, which must be there); each becomes an attribute of that name. `needs` are the labels, fields of
    `Person`, that its pictures must have. `forward(batch)` returns a dict of scalar losses whose "loss" is minimised.
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.people = PeopleFolder(config.data, training_size(config))
        self.people.require(self.needs, f"the stage {config.stage!r}")
        for name in self.frozen:
            component = load_component(Path(config.pipeline), name)
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()
            setattr(self, name, component)
        for name in self.trained:
            setattr(self, name, self.load_or_build(name).train())

    def train(self, mode: bool = True) -> Stage:
        """As any module's; but frozen networks stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            if isinstance(component := getattr(self, name), nn.Module):
                component.eval()
        return self

    def load_or_build(self, name: str) -> Any:
        """A component to train: the pipeline's, or a fresh one where the folder has none."""
        return load_or_build_component(Path(self.config.pipeline), name, self.config.preset)

    def prepare(self, accelerator: Any) -> None:
        """Work before the first step (an encoding pass); resumable."""

    def checkpoint_gradients(self) -> None:
        """Let the networks on the way of the gradient compute their activations twice instead of keeping them.

        Raises:
            ValueError: a trained network cannot.
        """
        for name in self.trained:
            network = getattr(self, name)
            if not getattr(network, "_supports_gradient_checkpointing", True):
                raise ValueError(f"gradient_checkpointing: {name} cannot do it; set it to false for this stage")
            if hasattr(network, "enable_gradient_checkpointing"):
                network.enable_gradient_checkpointing()
            else:  # transformers' name for it
                network.activation_checkpointing_enable()

    def compiled(self) -> list[nn.Module]:
        """The modules that `torch.compile` is for: those whose `forward` does the work of a step."""
        return [getattr(self, name) for name in self.trained]

    def order(self, epoch: int) -> np.ndarray:
        """Indices of one epoch in the order they are seen, int64, a function of the seed and the epoch."""
        return np.random.default_rng([self.config.seed, epoch]).permutation(len(self.people))

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        """One sample; everything random in it comes from `self.random(serial)`."""
        raise NotImplementedError

    def random(self, serial: int) -> np.random.Generator:
        """The generator of the run's sample number `serial`."""
        return np.random.default_rng([self.config.seed, 1, serial])

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """A picture, float32 (H, W, 3) in [0, 1], that shows how training stands."""
        raise NotImplementedError

    def finish(self, pipeline: Path) -> None:
        """Save the trained components (their averaged weights are in place)."""
        for name in self.trained:
            save_component(pipeline, name, getattr(self, name))


def training_size(config: TrainConfig) -> tuple[int, int]:
    """(height, width) of training pictures: the configuration's, or the base size of its preset."""
    settings = check_preset(config.preset)
    return config.height or settings.base_height, config.width or settings.base_width


def mirrored(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture or, half of the time, its mirror image."""
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def degraded_pair(picture: np.ndarray, rng: np.random.Generator, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """(x, y): uint8 picture to float32 [0, 1], and its degraded version brought back to its size (bicubic)."""
    high = picture.astype(np.float32) / 255.0
    low = resize(degrade(high, rng, config.degradation), high.shape[0], high.shape[1], method="bicubic")
    return high, np.clip(low, 0.0, 1.0)


def random_crop(arrays: list[np.ndarray], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The same random `size`² window of every (H, W, ...) array; whole arrays where size is 0."""
    if size == 0:
        return arrays
    height, width = arrays[0].shape[:2]
    if size > min(height, width):
        raise ValueError(f"crop is {size}; the pictures are only {height}×{width}")
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    return [a[top : top + size, left : left + size] for a in arrays]


def channels_first(picture: np.ndarray) -> np.ndarray:
    """(H, W, C) to contiguous (C, H, W)."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def grid(columns: list[torch.Tensor], count: int = 8) -> np.ndarray:
    """Columns of (B, 3, H, W) pictures in [0, 1], B rows side by side: float32 (count·H/…, …, 3)."""
    rows = [torch.cat([c[i].float().cpu() for c in columns], dim=2) for i in range(min(count, len(columns[0])))]
    while len(rows) % 4:
        rows.append(torch.zeros_like(rows[0]))
    lines = [torch.cat(rows[i : i + 4], dim=2) for i in range(0, len(rows), 4)]
    return torch.cat(lines, dim=1).clamp(0, 1).permute(1, 2, 0).numpy()
