"""What a stage is: a module of tensors in, tensors out, that describes its own tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.options import ModelSettings
from diffbody_ref.ops.prompts import MAX_CHUNKS
from diffbody_ref.ops.tensors import SizeRange, TensorSpec

BATCH = SizeRange(1, 1, 8)  # a prompt's chunks are a batch, too
PEOPLE = SizeRange(1, 1, 16)
CHUNKS = SizeRange(1, 1, MAX_CHUNKS)

# Units of the last place are 2⁻²⁴, 2⁻¹¹ and 2⁻⁸; what a deep network makes of one is some ten times as much, and
# float32 has more in reserve.
TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
"""(generator, shape) → random values such as occur."""


@dataclass(frozen=True)
class Signature:
    """The tensors of a stage.

    Attributes:
        inputs: the module's arguments, in order.
        outputs: the module's results, in order.
        sizes: the range of each dynamic size.
        draw: for each input, random values such as occur.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: dict[str, SizeRange]
    draw: dict[str, Draw]


class Stage(nn.Module, ABC):
    """One stage as a PyTorch module: tensors in, tensors out, nothing that depends on the inputs' values.

    Tensors are float32 (whole numbers int64) at every door; inside, a network works in the precision of its weights.
    A subclass takes its components as arguments, in the order of `components`.

    Attributes:
        components: the pipeline's components that the stage is made of.
        tolerance: relative L2 error that a graph's output may have in each precision, the median over runs.
        tolerance_of_one_run: the error that the output of a single run may have.
        has_gradient: the module calls autograd, so its graph is traced through it (`export.gradient`).
    """

    components: ClassVar[tuple[str, ...]]
    tolerance: ClassVar[Mapping[str, float]] = TOLERANCE
    tolerance_of_one_run: ClassVar[Mapping[str, float]] = TOLERANCE
    has_gradient: ClassVar[bool] = False

    @abstractmethod
    def signature(self, geometry: Geometry, settings: ModelSettings) -> Signature:
        """The stage's tensors in a model of this geometry and with these settings."""


@dataclass(frozen=True)
class BoundStage:
    """A stage of one model.

    Attributes:
        name: its key in `diffbody_ref.stages.STAGES`, after which its graph is called.
        module: the reference.
        signature: its tensors.
    """

    name: str
    module: Stage
    signature: Signature

    def example(self, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """Random inputs by name; sizes that are left out are the usual ones."""
        rng = np.random.default_rng(seed)
        chosen = {name: (sizes or {}).get(name, span.usual) for name, span in self.signature.sizes.items()}
        shapes = {spec.name: spec.with_sizes(chosen) for spec in self.signature.inputs}
        return {
            spec.name: self.signature.draw[spec.name](rng, shapes[spec.name]).astype(spec.dtype, copy=False)
            for spec in self.signature.inputs
        }

    def reference(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the module makes of inputs by name: its outputs by name, in float32."""
        with torch.no_grad():
            results = self.module(*(torch.tensor(feed[spec.name]) for spec in self.signature.inputs))
        return {name: result.numpy() for name, result in name_outputs(self.signature.outputs, results).items()}


def name_outputs(specs: tuple[TensorSpec, ...], results: Any) -> dict[str, Tensor]:
    """A module's result, a tensor or a tuple of them, by the outputs' names."""
    results = results if isinstance(results, tuple) else (results,)
    return {spec.name: result for spec, result in zip(specs, results, strict=True)}


def as_weights(network: Any, tensor: Tensor) -> Tensor:
    """A tensor in the precision of a network's weights."""
    return tensor.to(network.dtype)


def picture_shape(geometry: Geometry) -> tuple[int | str, ...]:
    """Shape of a batch of pictures; sides count in multiples of the coarsest grid, so that all stages share them."""
    return ("batch", 3, f"{geometry.multiple}*height", f"{geometry.multiple}*width")


def latents_shape(geometry: Geometry) -> tuple[int | str, ...]:
    """Shape of a batch of latents; see `picture_shape`."""
    cells = geometry.multiple // geometry.factor
    return ("batch", geometry.latent_channels, f"{cells}*height", f"{cells}*width")


def grid_sizes(geometry: Geometry, settings: ModelSettings) -> dict[str, SizeRange]:
    """Ranges of the sizes in `picture_shape` and `latents_shape`: up to a tile."""
    most = settings.tile_size // geometry.multiple
    return {
        "batch": BATCH,
        "height": SizeRange(1, min(settings.base_height // geometry.multiple, most), most),
        "width": SizeRange(1, min(settings.base_width // geometry.multiple, most), most),
    }


def uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values in [0, 1), such as those of pictures."""
    return rng.random(shape)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal values, such as those of latents."""
    return rng.standard_normal(shape)
