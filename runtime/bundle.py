"""The bundle: a pipeline folder in diffusers' layout, with a manifest and a graph for each stage beside the networks.

    manifest.json       what `Manifest` holds
    STAGE.*.onnx        the stages' graphs by precision; their weights are those in the networks' safetensors files
    COMPONENT/          the networks, which PyTorch runs; and the tokenizer's vocabulary
    plans/TARGET/       the graphs as TensorRT plans, where asked for
    parity.md, .json    how near the graphs are to the networks

The manifest names every file with its size and SHA-256; a bundle whose files differ is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from runtime.engines.pool import EnginePool
    from runtime.restore import Restorer

SCHEMA = 1
MANIFEST = "manifest.json"
PRECISIONS = ("float32", "float16", "bfloat16")


def graph_kind(precision: str) -> str:
    """How a stage's entry calls its ONNX graph that calculates in a precision."""
    return f"onnx-{precision}"


class BundleError(ValueError):
    """A bundle cannot be used; the message is one line that names the file and what to do."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a stage.

    Attributes:
        name: in the graph.
        dtype: numpy's name of it.
        shape: whole numbers, and dynamic sizes as "name" or "factor*name": "16*height" is a multiple of 16.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def with_sizes(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the dynamic sizes are these."""
        return tuple(side if isinstance(side, int) else _scaled(side, sizes) for side in self.shape)


@dataclass(frozen=True)
class SizeRange:
    """A dynamic size: what an engine must accept, and what it is tuned for."""

    least: int
    usual: int
    most: int


def split_side(side: str) -> tuple[int, str]:
    """ "16*height" → (16, "height"); "batch" → (1, "batch")."""
    factor, _, name = side.rpartition("*")
    return int(factor or 1), name


def _scaled(side: str, sizes: Mapping[str, int]) -> int:
    factor, name = split_side(side)
    return factor * sizes[name]


def read_sizes(specs: Sequence[TensorSpec], feed: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The dynamic sizes that a feed has.

    Raises:
        ValueError: a tensor is missing or unknown, has another dtype or shape, or two disagree on a size.
    """
    if unknown := feed.keys() - {spec.name for spec in specs}:
        raise ValueError(f"unknown input {min(unknown)!r}; known are {', '.join(spec.name for spec in specs)}")
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name not in feed:
            raise ValueError(f"input {spec.name!r} is missing")
        array = feed[spec.name]
        wanted = f"input {spec.name!r} must be {spec.dtype} of shape {spec.shape}"
        if array.dtype.name != spec.dtype or array.ndim != len(spec.shape):
            raise ValueError(f"{wanted}, not {array.dtype.name} of {array.shape}")
        for side, size in zip(spec.shape, array.shape, strict=True):
            factor, name = (size, "") if isinstance(side, int) else split_side(side)
            if (isinstance(side, int) and side != size) or size % max(factor, 1):
                raise ValueError(f"{wanted}, not {array.shape}")
            if name and sizes.setdefault(name, size // factor) != size // factor:
                raise ValueError(f"{wanted}, but {name} is {sizes[name]} elsewhere and {size // factor} here")
    return sizes


@dataclass(frozen=True)
class StageEntry:
    """One stage: its tensors, its dynamic sizes, and its graphs by kind ("onnx-float32") as paths in the bundle."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: dict[str, SizeRange]
    graphs: dict[str, str]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: bytes and SHA-256 as hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class PlanTarget:
    """What TensorRT plans were made for: they run nowhere else.

    Attributes:
        flavour: the Python module that makes and runs them, "tensorrt" or "tensorrt_rtx". version: of it.
        compute_capabilities: of the GPUs, such as "8.9".
        precision: of the graphs that they were made from.
    """

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    precision: str

    @property
    def kind(self) -> str:
        """How a stage's entry calls its plan: "tensorrt_rtx-1.7.1.116-sm89-float16"."""
        gpus = "-".join(f"sm{capability.replace('.', '')}" for capability in self.compute_capabilities)
        return f"{self.flavour}-{self.version}-{gpus}-{self.precision}"


@dataclass(frozen=True)
class Geometry:
    """The numbers that tie the stages together.

    Attributes:
        multiple: sides of working pictures are multiples of this. factor: pixels per latent cell along a side.
        latent_channels: of the latents. text_length: token ids a prompt is cut or padded to.
        detector_size: side of the detector's square input. pose_height, pose_width: of the pose network's crops.
        part_names: K parts, in the order of the attention maps.
    """

    multiple: int
    factor: int
    latent_channels: int
    text_length: int
    detector_size: int
    pose_height: int
    pose_width: int
    part_names: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a bundle is.

    Attributes:
        name: of the model. settings: defaults of a call and the base size, by the names of the pipeline's arguments.
        alphas_cumprod: ᾱ of the training timesteps, from which every sampler's coefficients follow.
        tokenizer: of the tokenizers library, as JSON without its vocabulary, which the folder tokenizer/ holds.
        plans: the TensorRT plans that every stage has.
        files: every file that engines read, but the manifest, by its path in the bundle.
        provenance: versions of what made it and a hash of the source weights.
    """

    name: str
    settings: dict[str, Any]
    geometry: Geometry
    alphas_cumprod: tuple[float, ...]
    stages: dict[str, StageEntry]
    tokenizer: dict[str, Any]
    files: dict[str, FileEntry]
    provenance: dict[str, str]
    plans: tuple[PlanTarget, ...] = ()
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The manifest's file."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def read_manifest(folder: Path, verify: bool = True) -> Manifest:
    """The manifest of a bundle, whose files are as it says, unless that is not to be verified.

    Raises:
        BundleError: no bundle, a newer schema, a broken manifest, a path outside the bundle, a missing or changed file.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder}: not a bundle, it has no {MANIFEST}; make one with `diffbody export`") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise BundleError(f"{path}: schema is {schema!r}, this version reads {SCHEMA}; update diffbody or export again")
    try:
        manifest = _manifest(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path}: broken manifest: {error!r}; export again") from None
    for name, entry in manifest.files.items() if verify else ():
        _check_file(folder, name, entry)
    for stage in manifest.stages.values():
        for graph in stage.graphs.values():
            if graph not in manifest.files:
                raise BundleError(f"{path}: the graph {graph!r} is not among its files; export again")
    return manifest


def _manifest(values: dict[str, Any]) -> Manifest:
    def specs(items: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in items)

    geometry = {**values["geometry"], "part_names": tuple(values["geometry"]["part_names"])}
    stages = {
        name: StageEntry(
            specs(stage["inputs"]),
            specs(stage["outputs"]),
            {size: SizeRange(**given) for size, given in stage["sizes"].items()},
            dict(stage["graphs"]),
        )
        for name, stage in values["stages"].items()
    }
    files = {name: FileEntry(**entry) for name, entry in values["files"].items()}
    known: dict[str, Any] = {"geometry": Geometry(**geometry), "stages": stages, "files": files}
    known["plans"] = tuple(
        PlanTarget(**{**plan, "compute_capabilities": tuple(plan["compute_capabilities"])}) for plan in values["plans"]
    )
    return Manifest(**{**values, "alphas_cumprod": tuple(values["alphas_cumprod"]), **known})


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    inside = PurePosixPath(name)
    path = folder / inside
    if inside.is_absolute() or ".." in inside.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder}: {name!r} is outside of the bundle; it is not to be trusted")
    if not path.is_file():
        raise BundleError(f"{path}: missing; export or download the bundle again")
    if path.stat().st_size != entry.size or sha256(path) != entry.sha256:
        raise BundleError(f"{path}: differs from the manifest; export or download the bundle again")


def sha256(path: Path) -> str:
    """A file's SHA-256 as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: Path) -> FileEntry:
    """What the manifest says of a file."""
    return FileEntry(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> Bundle:
        """Read a bundle, and verify its files; without that only if it was verified a moment ago.

        Raises:
            BundleError: see `read_manifest`.
        """
        folder = Path(folder)
        return cls(folder, read_manifest(folder, verify))

    def restorer(
        self,
        engine: str = "onnxruntime",
        guidance: str = "engine",
        device: str = "auto",
        threads: int | None = None,
        low_memory: bool = False,
        precision: str = "float32",
    ) -> Restorer:
        """What restores pictures on this bundle's graphs; see `runtime.restore.Restorer`.

        Args:
            engine: "onnxruntime", "tensorrt" (the bundle's plans), or "torch" (the networks themselves).
            guidance: "engine", or "torch": what runs the gradient of eq. 6.
            device: "cpu", "cuda", or "auto": a GPU where the engine can use one. Plans run on a GPU only.
            threads: of an operator on the CPU; None is all cores.
            low_memory: hold one stage's engine at a time.
            precision: what the networks calculate in, "float32", or another of `PRECISIONS` that the bundle has.

        Raises:
            ValueError: the bundle has no such graphs; unknown engine, guidance, device or precision.
        """
        from runtime.restore import Restorer, load_tokenizer

        pool = self.engines(engine, guidance, device, threads, low_memory, precision)
        return Restorer(self.manifest, pool.infer, load_tokenizer(self))

    def engines(
        self,
        engine: str = "onnxruntime",
        guidance: str = "engine",
        device: str = "auto",
        threads: int | None = None,
        low_memory: bool = False,
        precision: str = "float32",
    ) -> EnginePool:
        """What runs this bundle's stages by name; arguments and errors as those of `restorer`."""
        from runtime.engines.pool import EnginePool

        if guidance not in ("engine", "torch"):
            raise ValueError(f"unknown guidance {guidance!r}, choose one of engine, torch")
        kinds = dict.fromkeys(self.manifest.stages, engine)
        if guidance == "torch":
            kinds["guidance"] = "torch"
        return EnginePool(self, kinds, device, threads, low_memory, precision)
