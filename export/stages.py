"""The stages of a bundle, described: tensors, sizes, example inputs, tolerance. All that is done to stages derives from
this and from `diffbody_ref.modules.MODULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffbody_ref.modules import MODULES, Detector, build_module
from diffbody_ref.ops.keypoints import COUNT as KEYPOINTS
from diffbody_ref.ops.pose import MEAN, PAD_VALUE, SPLIT_RATIO, STD
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.sampling import NUM_TRAIN_TIMESTEPS
from runtime.bundle import SizeRange, TensorSpec, split_side

BATCH = SizeRange(1, 1, 8)
PEOPLE = SizeRange(1, 1, 16)

# Units of the last place are 2⁻²⁴, 2⁻¹¹ and 2⁻⁸; what a deep network makes of one is some ten times as much, and
# float32 has more in reserve.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}

Progress = Callable[[int, int, str], None]
"""What long work on stages reports to: (stages done, stages in all, the one at work)."""

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Stage:
    """One graph of a bundle.

    Attributes:
        name: its file and its folder are called so.
        module: the reference; its arguments and results are those of the graph, in order.
        inputs, outputs: their names, dtypes and shapes in float32.
        ranges: of each dynamic size.
        draw: for each input, random values as they occur.
        tolerance: relative L2 error that an output may have in each precision, the median over runs.
        worst: the same of a single run.
        has_gradient: the module calls autograd, so its graph is traced through it (`export.gradient`).
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: dict[str, SizeRange]
    draw: dict[str, Draw]
    tolerance: Mapping[str, float] = field(default_factory=lambda: TOLERANCE)
    worst: Mapping[str, float] = field(default_factory=lambda: TOLERANCE)
    has_gradient: bool = False

    def example(self, sizes: dict[str, int] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """Random inputs; sizes left out are the usual ones."""
        rng = np.random.default_rng(seed)
        chosen = {name: (sizes or {}).get(name, given.usual) for name, given in self.ranges.items()}
        shapes = {spec.name: spec.with_sizes(chosen) for spec in self.inputs}
        return {
            spec.name: self.draw[spec.name](rng, shapes[spec.name]).astype(spec.dtype, copy=False)
            for spec in self.inputs
        }

    def reference(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the module says, in float32."""
        with torch.no_grad():
            results = self.module(*(torch.tensor(feed[spec.name]) for spec in self.inputs))
        results = results if isinstance(results, tuple) else (results,)
        return {spec.name: result.numpy() for spec, result in zip(self.outputs, results, strict=True)}


def stages(pipeline: DiffBodyPipeline) -> tuple[Stage, ...]:
    """The stages of `diffbody_ref.modules.MODULES` with the pipeline's networks."""
    describe = {
        "restorer": _restorer,
        "pose_detector": _pose_detector,
        "pose": _pose,
        "parts": _parts,
        "text_encoder": _text_encoder,
        "vae_encoder": _vae_encoder,
        "denoiser": _denoiser,
        "guidance": _guidance,
        "vae_decoder": _vae_decoder,
    }
    return tuple(describe[name](pipeline) for name in MODULES)


def _restorer(pipeline: DiffBodyPipeline) -> Stage:
    picture = _picture(pipeline)
    return Stage(
        "restorer",
        build_module("restorer", pipeline.components),
        (TensorSpec("picture", "float32", picture),),
        (TensorSpec("regression", "float32", picture),),
        _grid_ranges(pipeline),
        {"picture": _uniform},
    )


def _pose_detector(pipeline: DiffBodyPipeline) -> Stage:
    module = build_module("pose_detector", pipeline.components)
    assert isinstance(module, Detector)
    size = pipeline.pose_detector.config.size
    return Stage(
        "pose_detector",
        module,
        (TensorSpec("square", "float32", ("batch", 3, size, size)), TensorSpec("ratio", "float32", ("batch",))),
        (TensorSpec("boxes", "float32", ("batch", module.candidates, 5)),),
        {"batch": BATCH},
        {
            "square": lambda rng, shape: np.where(rng.random(shape) < 0.2, PAD_VALUE, 255.0 * rng.random(shape)),
            "ratio": lambda rng, shape: rng.uniform(0.5, 2.0, shape),
        },
    )


def _pose(pipeline: DiffBodyPipeline) -> Stage:
    height, width = pipeline.pose.config.height, pipeline.pose.config.width
    normalise = lambda rng, shape: ((255.0 * rng.random(shape)).transpose(0, 2, 3, 1) - MEAN) / STD  # noqa: E731
    return Stage(
        "pose",
        build_module("pose", pipeline.components),
        (TensorSpec("crops", "float32", ("people", 3, height, width)),),
        (
            TensorSpec("simcc_x", "float32", ("people", KEYPOINTS, int(SPLIT_RATIO * width))),
            TensorSpec("simcc_y", "float32", ("people", KEYPOINTS, int(SPLIT_RATIO * height))),
        ),
        {"people": PEOPLE},
        {"crops": lambda rng, shape: np.ascontiguousarray(normalise(rng, shape).transpose(0, 3, 1, 2))},
    )


def _parts(pipeline: DiffBodyPipeline) -> Stage:
    count, dim = pipeline.parts.part_count, pipeline.parts.settings.embedding_dim
    base = SizeRange(8, pipeline.config.base_height, pipeline.config.tile_size)
    return Stage(
        "parts",
        build_module("parts", pipeline.components),
        (TensorSpec("person", "float32", ("people", 3, "height", "width")),),
        (
            TensorSpec("attention", "float32", ("people", count + 1, "height", "width")),
            TensorSpec("embeddings", "float32", ("people", count, dim)),
            TensorSpec("visibility", "float32", ("people", count)),
        ),
        {
            "people": PEOPLE,
            "height": base,
            "width": SizeRange(8, pipeline.config.base_width, pipeline.config.tile_size),
        },
        {"person": _uniform},
    )


def _text_encoder(pipeline: DiffBodyPipeline) -> Stage:
    config = pipeline.text_encoder.config
    length = config.max_position_embeddings
    return Stage(
        "text_encoder",
        build_module("text_encoder", pipeline.components),
        (TensorSpec("token_ids", "int64", ("batch", length)),),
        (TensorSpec("text", "float32", ("batch", length, config.hidden_size)),),
        {"batch": BATCH},
        {"token_ids": lambda rng, shape: rng.integers(0, config.vocab_size, shape)},
    )


def _vae_encoder(pipeline: DiffBodyPipeline) -> Stage:
    return Stage(
        "vae_encoder",
        build_module("vae_encoder", pipeline.components),
        (TensorSpec("picture", "float32", _picture(pipeline)),),
        (TensorSpec("latents", "float32", _latents(pipeline)),),
        _grid_ranges(pipeline),
        {"picture": _uniform},
    )


def _denoiser(pipeline: DiffBodyPipeline) -> Stage:
    latents = _latents(pipeline)
    text = pipeline.text_encoder.config
    condition = (latents[0], pipeline.control.controlnet_cond_embedding.in_channels, *latents[2:])
    return Stage(
        "denoiser",
        build_module("denoiser", pipeline.components),
        (
            TensorSpec("latents", "float32", latents),
            TensorSpec("timesteps", "int64", ("batch",)),
            TensorSpec("text", "float32", ("batch", text.max_position_embeddings, text.hidden_size)),
            TensorSpec("condition", "float32", condition),
        ),
        (TensorSpec("noise", "float32", latents),),
        _grid_ranges(pipeline),
        {
            "latents": _normal,
            "timesteps": lambda rng, shape: rng.integers(0, NUM_TRAIN_TIMESTEPS, shape),
            "text": _normal,
            "condition": _normal,
        },
    )


def _guidance(pipeline: DiffBodyPipeline) -> Stage:
    latents = _latents(pipeline)
    count, dim = pipeline.parts.part_count, pipeline.parts.settings.embedding_dim
    return Stage(
        "guidance",
        build_module("guidance", pipeline.components),
        (
            TensorSpec("latents", "float32", latents),
            TensorSpec("embeddings", "float32", ("people", count, dim)),
            TensorSpec("visibility", "float32", ("people", count)),
            TensorSpec("windows", "float32", ("people", 4)),
            TensorSpec("owners", "float32", ("people", "batch")),
            TensorSpec("scale", "float32", ("batch",)),
        ),
        (TensorSpec("loss", "float32", ("batch",)), TensorSpec("gradient", "float32", latents)),
        {**_grid_ranges(pipeline), "people": PEOPLE},
        {
            "latents": _normal,
            "embeddings": lambda rng, shape: np.abs(rng.standard_normal(shape)),
            "visibility": lambda rng, shape: np.maximum(rng.integers(0, 2, shape), np.arange(shape[1]) == 0),
            # Inside the smallest picture that a batch can hold.
            "windows": lambda rng, shape: np.tile((1, 0, pipeline.multiple - 2, pipeline.multiple), (shape[0], 1)),
            "owners": lambda rng, shape: np.eye(shape[1])[rng.integers(0, shape[1], shape[0])],
            "scale": _uniform,
        },
        # A ReLU that is at its kink in float32 switches a term of the gradient on or off: PyTorch in float32 is then as
        # far as 5e-4 from itself in float64, where graph and autograd agree to 1e-9 (tests/test_export.py). Near the
        # minimum, where the gradient is small, one such term is a hundredth of it; in half precision there are many.
        tolerance={"float32": 2e-3, "float16": 0.1, "bfloat16": 0.3},
        worst={"float32": 5e-2, "float16": 0.2, "bfloat16": 0.6},
        has_gradient=True,
    )


def _vae_decoder(pipeline: DiffBodyPipeline) -> Stage:
    return Stage(
        "vae_decoder",
        build_module("vae_decoder", pipeline.components),
        (TensorSpec("latents", "float32", _latents(pipeline)),),
        (TensorSpec("picture", "float32", _picture(pipeline)),),
        _grid_ranges(pipeline),
        {"latents": _normal},
    )


def _picture(pipeline: DiffBodyPipeline) -> tuple[int | str, ...]:
    return ("batch", 3, f"{pipeline.multiple}*height", f"{pipeline.multiple}*width")


def _latents(pipeline: DiffBodyPipeline) -> tuple[int | str, ...]:
    cells = pipeline.multiple // pipeline.factor
    return ("batch", pipeline.vae.config.latent_channels, f"{cells}*height", f"{cells}*width")


def _grid_ranges(pipeline: DiffBodyPipeline) -> dict[str, SizeRange]:
    """Sides count in multiples of the coarsest grid, so that a stage's pictures and latents share them."""
    config, multiple = pipeline.config, pipeline.multiple
    most = config.tile_size // multiple
    return {
        "batch": BATCH,
        "height": SizeRange(1, min(config.base_height // multiple, most), most),
        "width": SizeRange(1, min(config.base_width // multiple, most), most),
    }


def _uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.random(shape)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def as_tensors(feed: dict[str, np.ndarray], stage: Stage) -> tuple[Tensor, ...]:
    """A feed as the module's arguments."""
    return tuple(torch.from_numpy(feed[spec.name]) for spec in stage.inputs)


def dynamic_shapes(stage: Stage) -> tuple[dict[int, Any], ...]:
    """The dynamic sizes of each input as `torch.export` wants them, one `Dim` a name."""
    dims = {name: torch.export.Dim(name, min=given.least, max=given.most) for name, given in stage.ranges.items()}
    return tuple(
        {axis: _dim(side, dims) for axis, side in enumerate(spec.shape) if isinstance(side, str)}
        for spec in stage.inputs
    )


def _dim(side: str, dims: dict[str, Any]) -> Any:
    factor, name = split_side(side)
    return dims[name] if factor == 1 else factor * dims[name]
