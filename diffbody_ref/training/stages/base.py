"""The base class of all training stages: components, items, a loss, a preview."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from diffbody_ref.components import load_component, load_or_build_component, save_component
from diffbody_ref.data.datasets import Content, PeopleFolder
from diffbody_ref.data.mixing import mixed_order
from diffbody_ref.ops.options import check_preset
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.disk import writing


class TrainingStage(nn.Module):
    """A trainable module that consists of pipeline components.

    Each component becomes an attribute with the component's name. `forward(batch)` returns a dict of scalar losses;
    "loss" is minimised.

    Attributes:
        trained: names of the components that the stage trains; they are loaded from the pipeline folder or built.
        frozen: names of the components that the stage only uses; they must be in the pipeline folder.
        configured: names of components without weights that the stage reads; what the folder lacks is the preset's.
        needs: labels, fields of `Person`, that the stage's pictures must have.
        adversaries: names of modules that train against the trained components: with a learning rate of their own
            (`TrainConfig.adversary_learning_rate`), and without a moving average.
        config: configuration of the run.
        people: the pictures.
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    configured: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    adversaries: tuple[str, ...] = ()

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.people = PeopleFolder(config.data, training_size(config) if config.resize else None)
        self.people.require(self.needs, f"the stage {config.stage!r}")
        self._contents: list[Content] | None = None
        self.trained, self.frozen = self.components(config)
        for name in self.frozen:
            component = load_component(Path(config.pipeline), name)
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()
            setattr(self, name, component)
        for name in self.trained:
            setattr(self, name, self.load_or_build(name).train())

    @classmethod
    def components(cls, config: TrainConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the components that a run of this configuration trains, and of those that it only uses."""
        return cls.trained, cls.frozen

    def train(self, mode: bool = True) -> TrainingStage:
        """Set the training mode of the trained networks; frozen networks stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            if isinstance(component := getattr(self, name), nn.Module):
                component.eval()
        return self

    def load_or_build(self, name: str) -> Any:
        """A component to train: loaded from the pipeline folder, or built if the folder does not contain it."""
        return load_or_build_component(Path(self.config.pipeline), name, self.config.preset)

    def contents(self, accelerator: Any, progress: Progress = silent) -> list[Content]:
        """Checksums of what the data holds of every picture, read once, by the main process."""
        if self._contents is None:
            found = [self.people.contents(progress) if accelerator.is_main_process else None]
            if accelerator.num_processes > 1:
                broadcast_object_list(found)
            self._contents = found[0]
        assert self._contents is not None
        return self._contents

    def prepare(self, accelerator: Any, progress: Progress = silent) -> None:
        """Work to do before the first step, for example an encoding pass; it can be resumed."""

    def notices(self) -> list[str]:
        """What whoever trains should know of the data, a line each."""
        return []

    def checkpoint_gradients(self) -> None:
        """Let the networks through which the gradient passes compute activations twice instead of keeping them.

        Raises:
            ValueError: a trained network does not support it.
        """
        for name in self.trained:
            network = getattr(self, name)
            if not getattr(network, "_supports_gradient_checkpointing", True):
                raise ValueError(f"gradient_checkpointing: {name} does not support it; set it to false for this stage")
            if hasattr(network, "enable_gradient_checkpointing"):
                network.enable_gradient_checkpointing()
            else:  # the name in transformers
                network.activation_checkpointing_enable()

    def compiled(self) -> list[nn.Module]:
        """The modules to compile by `torch.compile`: those whose `forward` does the work of a step."""
        return [getattr(self, name) for name in self.trained]

    def order(self, epoch: int) -> np.ndarray:
        """The indices of one epoch in their order, int64; they depend only on the seed and the epoch.

        Raises:
            ValueError: see `data.mixing.quotas`.
        """
        if self.config.data_weights:
            return mixed_order(self.people.sizes, self.config.data_weights, self.config.seed, epoch)
        return np.random.default_rng([self.config.seed, epoch]).permutation(len(self.people))

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        """One training sample.

        Args:
            index: index of the picture, from `order`.
            serial: number of the sample in the run; everything random comes from `self.random(serial)`.
        """
        raise NotImplementedError

    def random(self, serial: int) -> np.random.Generator:
        """The random generator of the run's sample number `serial`."""
        return np.random.default_rng([self.config.seed, 1, serial])

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """A picture, float32 (H, W, 3) in [0, 1], that shows the state of training."""
        raise NotImplementedError

    def measure(self) -> dict[str, float]:
        """Measures on the held-out pictures of the configuration, by name; {} if there are none."""
        return {}

    def finish(self, pipeline: Path) -> None:
        """Save the trained components to the pipeline folder; their weights are the moving averages.

        Raises:
            OSError: one cannot be written; the folder's is as it was.
        """
        for name in self.trained:
            try:
                with writing(pipeline / name):
                    save_component(pipeline, name, getattr(self, name))
            except OSError:
                shutil.rmtree(pipeline / f".{name}.new", ignore_errors=True)
                raise


def training_size(config: TrainConfig) -> tuple[int, int]:
    """(height, width) of training pictures: the configuration's, or the base size of its preset."""
    settings = check_preset(config.preset)
    return config.height or settings.base_height, config.width or settings.base_width


def channels_first(picture: np.ndarray) -> np.ndarray:
    """Transpose (H, W, C) to a contiguous array (C, H, W)."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def grid(columns: list[torch.Tensor], count: int = 8) -> np.ndarray:
    """Lay out pictures: each of `count` samples is a row of its pictures; four samples stand side by side.

    Args:
        columns: pictures (B, 3, H, W) in [0, 1], one tensor per column.
        count: largest number of samples.

    Returns:
        float32 (⌈n/4⌉·H, 4·len(columns)·W, 3) in [0, 1] with n = min(count, B); missing samples are black.
    """
    rows = [torch.cat([c[i].float().cpu() for c in columns], dim=2) for i in range(min(count, len(columns[0])))]
    while len(rows) % 4:
        rows.append(torch.zeros_like(rows[0]))
    lines = [torch.cat(rows[i : i + 4], dim=2) for i in range(0, len(rows), 4)]
    return torch.cat(lines, dim=1).clamp(0, 1).permute(1, 2, 0).numpy()
