"""The bundle: a pipeline folder in diffusers' layout, with a manifest and a graph for each stage beside the networks.

    manifest.json       what `Manifest` holds
    STAGE.*.onnx        the stages' graphs by precision; their weights are those in the networks' safetensors files
    COMPONENT/          the networks, which PyTorch runs; and the tokenizer's vocabulary
    plans/TARGET/       the graphs as TensorRT plans, where asked for
    parity.md, .json    how near the graphs are to the networks

The manifest names every file with its size and SHA-256; a bundle whose files differ is refused.

A bundle may come from anybody, so its manifest is read by a schema: the dataclasses below, by msgspec, which reads
them as they are. (pydantic does so, too, and is installed with some extras. But msgspec is one wheel of 0.2 MB with no
dependencies, pydantic five of 2.9 MB, and what a bundle needs is on every laptop; both take tens of milliseconds to
import.) What types do not say is said by `_check_*`.

What is read of a bundle is what its manifest has the hash of. A file may be a link, as in Hugging Face's cache, where
all are links into a folder `blobs` outside: what the hash answers for is the same wherever it lies, and whoever wrote
the manifest knows its content already, so that nothing of this machine's can be smuggled into a result. A link out of
the bundle that no hash answers for is refused: it would bring in a file of this machine that the bundle's author
chose. (That files change after they were verified is not defended against: who can do that can change this program.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffbody_ref.ops.geometry import Geometry
from diffbody_ref.ops.options import ModelSettings
from diffbody_ref.ops.results import OPTIONAL_STAGES
from diffbody_ref.ops.samplers import NoiseProcess
from diffbody_ref.ops.tensors import SizeRange, TensorSpec

SCHEMA = 1
MANIFEST = "manifest.json"
UNREAD = (".md", ".png")  # for people: they may change
TOKENIZER_FILES = ("tokenizer/vocab.json", "tokenizer/merges.txt")
ADDED = ("settings.sampler", "prediction_type")  # fields that the first bundles lack: their value is the default
NEEDED_STAGES = ("text_encoder", "vae_encoder", "denoiser", "vae_decoder")
"""What `runtime.restore` cannot do without. It also runs those of `ops.results.OPTIONAL_STAGES` that there are, and
guidance; a bundle may have more."""
SIZES_READ = {"denoiser": ("batch",), "guidance": ("batch", "people")}  # of stages, whose ranges `runtime.steps` reads

GEOMETRY_OF = {"detector_size": "pose_detector", "pose_height": "pose", "pose_width": "pose"}
"""The stages without which sizes of the geometry are 0."""
DTYPES = ("float32", "float16", "int64", "int32", "bool")  # of tensors
DYNAMIC_SIDE = re.compile(r"(?:([1-9][0-9]{0,6})\*)?([a-z_]+)")  # see `TensorSpec.shape`
MAX_SIZE = 1 << 20  # of anything that is counted, in pixels, cells or channels
MAX_LINE = 300  # characters of an error


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
        prediction_type: what the denoiser's output is; see `ops.samplers.NoiseProcess`, as for the former.
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
    prediction_type: str = "epsilon"
    plans: tuple[PlanTarget, ...] = ()
    schema: int = SCHEMA

    @property
    def noise_process(self) -> NoiseProcess:
        """What the denoiser was trained on, and what it predicts."""
        return NoiseProcess(self.alphas_cumprod, self.prediction_type)

    @property
    def lacking(self) -> tuple[str, ...]:
        """The stages of `ops.results.OPTIONAL_STAGES` that the model does not have."""
        return tuple(stage for stage in OPTIONAL_STAGES if stage not in self.stages)

    @property
    def part_count(self) -> int:
        """K of the attention maps that the denoiser reads; negative where its condition has no room for any."""
        shapes = [spec.shape for spec in self.stages["denoiser"].inputs if spec.name == "condition"]
        channels = shapes[0][1] if shapes and len(shapes[0]) == 4 else 0
        return channels - self.geometry.latent_channels - 4 if isinstance(channels, int) else -1

    def to_json(self) -> str:
        """The manifest's file."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def read_manifest(folder: Path, verify: bool = True) -> Manifest:
    """The manifest of a bundle, whose files are as it says, unless that is not to be verified.

    Raises:
        BundleError: no bundle, another schema, a manifest that does not keep to it, a path or a link out of the bundle,
            a missing or changed file.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{folder}: not a bundle, it has no {MANIFEST}; make one with `diffbody export`") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {shorten(error)}") from None
    manifest = _parse(path, text)
    if verify:
        for name, entry in manifest.files.items():
            _check_file(folder, name, entry)
        _check_links(folder, manifest)
    return manifest


def _parse(path: Path, text: bytes) -> Manifest:
    import msgspec

    broken = f"{path}: broken manifest"
    values: Any = None
    try:
        values = msgspec.json.decode(text)
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != SCHEMA or isinstance(schema, bool):
            was = shorten(repr(schema))
            raise BundleError(f"{path}: schema is {was}, this version reads {SCHEMA}; update diffbody or export again")
        manifest = msgspec.convert(values, Manifest)
        _check_fields(values, dataclasses.asdict(manifest))
        _check_values(manifest)
    except BundleError:
        raise
    except msgspec.ValidationError as error:
        raise BundleError(f"{broken}: {shorten(_name_entry(str(error), values))}; export again") from None
    except RecursionError:
        raise BundleError(f"{broken}: it is nested too deeply; export again") from None
    except (ValueError, OverflowError) as error:  # msgspec's errors are ValueErrors
        raise BundleError(f"{broken}: {shorten(error)}; export again") from None
    return manifest


def _name_entry(error: str, values: Any) -> str:
    """msgspec's error with the name of the stage or file, for which it writes "[...]"."""
    import msgspec

    for part, kind in (("stages", StageEntry), ("files", FileEntry)):
        for name, value in values[part].items() if f"$.{part}[...]" in error else ():
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError:
                return error.replace(f"$.{part}[...]", f"$.{part}.{name}")
    return error


def _check_fields(given: Any, read: Any, place: str = "") -> None:
    """See that what was read of a manifest is all that it holds, and that nothing was filled in."""
    if isinstance(read, dict) and place != "tokenizer":
        for name in given.keys() ^ read.keys():
            field = f"{place}.{name}".lstrip(".")
            if name in given:
                raise ValueError(f"unknown field {field}")
            if field not in ADDED:
                raise ValueError(f"the field {field} is missing")
        for name in given.keys() & read.keys():
            _check_fields(given[name], read[name], f"{place}.{name}".lstrip("."))
    elif isinstance(read, list | tuple):
        for place_in_list, (one, other) in enumerate(zip(given, read, strict=True)):
            _check_fields(one, other, f"{place}[{place_in_list}]")


def _check_values(manifest: Manifest) -> None:
    """See that a manifest of the right types makes sense."""
    geometry, settings = manifest.geometry, manifest.settings
    for name, value in dataclasses.asdict(geometry).items():
        least = 0 if GEOMETRY_OF.get(name, "denoiser") not in manifest.stages else 1
        if name != "part_names" and not least <= value <= MAX_SIZE:
            raise ValueError(f"geometry.{name} must be in {least}..{MAX_SIZE}, got {value}")
    if geometry.multiple % geometry.factor:
        raise ValueError(f"geometry.multiple must be a multiple of {geometry.factor}, got {geometry.multiple}")
    if geometry.text_length < 3:
        raise ValueError(f"geometry.text_length must be at least 3, got {geometry.text_length}")
    if bool(geometry.part_names) != ("parts" in manifest.stages):
        raise ValueError("geometry.part_names must name parts where there is the stage parts, and only there")
    for name in ("base_height", "base_width", "tile_size"):
        if not 1 <= getattr(settings, name) <= MAX_SIZE:
            raise ValueError(f"settings.{name} must be in 1..{MAX_SIZE}, got {getattr(settings, name)}")
    try:
        settings.options()
    except ValueError as error:
        raise ValueError(f"settings: {error}") from None
    _ = manifest.noise_process  # checks itself
    together = {"parts", "guidance"} if {"parts", "guidance"} & manifest.stages.keys() else set()
    for name in (*NEEDED_STAGES, *sorted(together)):
        if name not in manifest.stages:
            raise ValueError(f"stages.{name} is missing")
        if missing := set(SIZES_READ.get(name, ())) - manifest.stages[name].sizes.keys():
            raise ValueError(f"stages.{name}.sizes.{min(missing)} is missing")
    if manifest.part_count < 0:
        raise ValueError("stages.denoiser: its condition must have channels of latents, pose and attention")
    for name, entry in manifest.files.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or "\0" in name:
            raise ValueError(f"files: {name!r} is outside of the bundle; it is not to be trusted")
        if entry.size < 0:
            raise ValueError(f"files: {name!r} cannot have {entry.size} bytes")
    for name in TOKENIZER_FILES:
        if name not in manifest.files:
            raise ValueError(f"{name!r} is not among its files")
    for name, stage in manifest.stages.items():
        _check_stage(f"stages.{name}", stage, manifest.files)


def _check_stage(place: str, stage: StageEntry, files: Mapping[str, FileEntry]) -> None:
    for name, span in stage.sizes.items():
        if not 1 <= span.least <= span.usual <= span.most <= MAX_SIZE:
            raise ValueError(f"{place}.sizes.{name} must be 1 <= least <= usual <= most <= {MAX_SIZE}")
    for spec in (*stage.inputs, *stage.outputs):
        if spec.dtype not in DTYPES:
            raise ValueError(f"{place}: {spec.name!r} has the dtype {spec.dtype!r}, known are {', '.join(DTYPES)}")
        for side in spec.shape:
            factor, size = (side, None) if isinstance(side, int) else _split_side(side)
            if not 1 <= factor <= MAX_SIZE or (size is not None and size not in stage.sizes):
                raise ValueError(f"{place}: {spec.name!r} has the side {side!r}: neither 1 to {MAX_SIZE} nor a size")
    for graph in stage.graphs.values():
        if graph not in files:
            raise ValueError(f"{place}: the graph {graph!r} is not among its files")


def _split_side(side: str) -> tuple[int, str | None]:
    """Factor and name of a dynamic size; a factor of 0 where it is none."""
    match = DYNAMIC_SIDE.fullmatch(side)
    return (int(match[1] or 1), match[2]) if match else (0, None)


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    try:
        if not path.is_file():
            raise BundleError(f"{path}: missing; export or download the bundle again")
        same = path.stat().st_size == entry.size and sha256(path) == entry.sha256
    except OSError as error:
        raise BundleError(f"{folder}: {shorten(name)}: cannot be read: {shorten(error)}") from None
    if not same:
        raise BundleError(f"{path}: differs from the manifest; export or download the bundle again")


def _check_links(folder: Path, manifest: Manifest) -> None:
    """See that no link brings in a file that the manifest has no hash of; nothing reads files for people."""
    whole = folder.resolve()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        read = path.suffix not in UNREAD and not path.name.startswith(".") and name != MANIFEST
        if path.is_symlink() and read and name not in manifest.files and not path.resolve().is_relative_to(whole):
            raise BundleError(f"{path}: a link out of the bundle to what the manifest does not list; remove it")


def shorten(text: object) -> str:
    """What is said of an error or a value, in one line that stays one, whatever somebody put into a file."""
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}…"


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
