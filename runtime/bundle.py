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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.options import ModelSettings
from diffbody_ref.ops.tensors import SizeRange, TensorSpec

SCHEMA = 1
MANIFEST = "manifest.json"


def graph_kind(precision: str) -> str:
    """The key in `StageEntry.graphs` of the ONNX graph that calculates in a precision."""
    return f"onnx-{precision}"


class BundleError(ValueError):
    """A bundle cannot be used; the message is one line that names the file and what to do."""


@dataclass(frozen=True)
class StageEntry:
    """One stage.

    Attributes:
        inputs: its input tensors, in the graph's order.
        outputs: its output tensors, in the graph's order.
        sizes: the range of each dynamic size.
        graphs: paths in the bundle by kind, such as "onnx-float32".
    """

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
        flavour: the Python module that makes and runs them, "tensorrt" or "tensorrt_rtx".
        version: of that module.
        compute_capabilities: of the GPUs, such as "8.9".
        precision: of the graphs that they were made from.
    """

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    precision: str

    @property
    def kind(self) -> str:
        """The key in `StageEntry.graphs` of such a plan: "tensorrt_rtx-1.7.1.116-sm89-float16"."""
        gpus = "-".join(f"sm{capability.replace('.', '')}" for capability in self.compute_capabilities)
        return f"{self.flavour}-{self.version}-{gpus}-{self.precision}"


@dataclass(frozen=True)
class Manifest:
    """What a bundle is.

    Attributes:
        name: of the model.
        settings: what the model says of every call.
        geometry: sizes that several stages share.
        alphas_cumprod: ᾱ of the training timesteps, from which every sampler's coefficients follow.
        stages: the stages by name.
        tokenizer: of the tokenizers library, as JSON without its vocabulary, which the folder tokenizer/ holds.
        plans: the TensorRT plans that every stage has.
        files: every file that engines read, but the manifest, by its path in the bundle.
        provenance: versions of what made it and a hash of the source weights.
    """

    name: str
    settings: ModelSettings
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
            {size: SizeRange(**values) for size, values in stage["sizes"].items()},
            dict(stage["graphs"]),
        )
        for name, stage in values["stages"].items()
    }
    files = {name: FileEntry(**entry) for name, entry in values["files"].items()}
    settings = ModelSettings(**values["settings"])
    known: dict[str, Any] = {"settings": settings, "geometry": Geometry(**geometry), "stages": stages, "files": files}
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
