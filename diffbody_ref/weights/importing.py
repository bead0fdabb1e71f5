"""From public checkpoints to a model folder: `diffbody import OUT FILE_OR_FOLDER...`.

Each file is opened once, recognised by the sources, and read component by component, so that memory stays near one copy
of one component. OUT is replaced by a complete new folder at the end, or stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from diffbody_ref.components import load_component
from diffbody_ref.libraries import silence_libraries
from diffbody_ref.models.control import with_parts
from diffbody_ref.models.parts import PartNet
from diffbody_ref.models.text import save_tokenizer
from diffbody_ref.ops.files import replace_folder
from diffbody_ref.ops.options import PRESETS
from diffbody_ref.weights import schedules
from diffbody_ref.weights.checkpoint import Checkpoint, open_checkpoint
from diffbody_ref.weights.found import Found, Imported, Source
from diffbody_ref.weights.provenance import Provenance, Row
from diffbody_ref.weights.sources import SOURCES, folders, tiny_autoencoder

SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".onnx")  # of files in a folder of downloads
INDEX = "model_index.json"
RECORD = "imported"  # key of the provenance in it
SHOWN = 3  # names in a message
# Of two components, the settings that must be equal.
TIES = (
    ("control", "unet", ("cross_attention_dim", "block_out_channels", "layers_per_block", "in_channels")),
    ("text_encoder", "unet", (("hidden_size", "cross_attention_dim"),)),
    ("vae", "unet", (("latent_channels", "in_channels"),)),
    ("tiny_vae", "vae", ("latent_channels",)),
)


@dataclass(frozen=True)
class Item:
    """A component that a source found in a checkpoint."""

    source: Source
    checkpoint: Checkpoint
    found: Found

    @property
    def component(self) -> str:
        """The component's name; "tiny_vae.encoder" is a part of "tiny_vae"."""
        return self.found.component.partition(".")[0]


def import_checkpoints(
    out: Path,
    paths: Sequence[Path],
    *,
    prediction: schedules.Prediction | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Row]:
    """Import public checkpoints into a model folder. Components that are there already and not given stay.

    Args:
        out: the model folder.
        paths: files and folders, in any order; of a folder that is no component or pipeline, the files in it.
        prediction: what the U-Net predicts, if not what its file says.
        dry_run: read and check everything, and write nothing.
        progress: is called with (done, in all, what is at work).

    Returns:
        A row a component, in the order in which they are read.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is not recognised, damaged or ambiguous, or two hold the same component, or components do not
            fit together.
    """
    silence_libraries()
    items = recognise(paths)
    run = _Import(out, None if dry_run else out.with_name(f".{out.name}.new"), prediction)
    try:
        rows = run.run(items, progress)
        run.finish(rows)
    finally:
        if run.fresh is not None:
            shutil.rmtree(run.fresh, ignore_errors=True)
    return rows


def recognise(paths: Sequence[Path]) -> list[Item]:
    """The components in files and folders.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file holds none, or tensors that belong to none; or two hold the same.
    """
    items: list[Item] = []
    for path in paths:
        found = _items(open_checkpoint(path))
        if not found and path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if not files:
                raise ValueError(f"{path}: no pipeline, component or checkpoint files in this folder")
            found = [item for file in files for item in _items(open_checkpoint(file))]
        items += found
    if not items:
        raise ValueError("nothing to import: give at least one file or folder")
    taken: dict[str, Path] = {}
    for item in items:
        name, path = item.found.component, item.checkpoint.path
        if name in taken and name != "lora":
            raise ValueError(f"{name} is in {taken[name]} and in {path}; give only one of them")
        taken[name] = path
    return items


def _items(checkpoint: Checkpoint) -> list[Item]:
    """What the sources find in a file; [] only of a folder.

    Raises:
        ValueError: they find nothing in a file, or nothing that some of its tensors belong to.
    """
    items = [
        Item(source, checkpoint, found) for source in SOURCES for found in _complete(source, checkpoint, source.detect)
    ]
    if not items and not checkpoint.folder:
        what = f"tensors such as {_first(list(checkpoint.tensors))}" if checkpoint.tensors else "a graph"
        known = ", ".join(source.NAME for source in SOURCES)
        raise ValueError(f"{checkpoint.path}: not recognised: it holds {what}; known are {known}")
    prefixes = tuple(prefix for item in items for prefix in item.found.prefixes)
    if left := [name for name in checkpoint.tensors if not name.startswith(prefixes)]:
        raise ValueError(f"{checkpoint.path}: {len(left)} tensors belong to no component: {_first(left)}")
    return items


def _complete(source: Source, checkpoint: Checkpoint, act: Callable[..., Any], *arguments: Any) -> Any:
    """What a source's function gives.

    Raises:
        ValueError: it, or a tensor that the source looks up is not there.
    """
    try:
        return act(checkpoint, *arguments)
    except KeyError as error:
        what = f"looks like {source.NAME}, but has no tensor {error.args[0]}"
        raise ValueError(f"{checkpoint.path}: {what}") from None


def _first(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _order(item: Item) -> tuple[int, str]:
    """The part network before the control branch, which has an input a part; the U-Net before its scheduler."""
    return {"control": 1, "scheduler": 2}.get(item.component, 0), item.found.component


class _Import:
    """One call of `import_checkpoints`.

    Args:
        out: the model folder.
        fresh: the folder that will replace it; None writes nothing.
        prediction: what the U-Net predicts, if not what its file says.
    """

    def __init__(self, out: Path, fresh: Path | None, prediction: str | None) -> None:
        self.out, self.fresh, self.prediction = out, fresh, prediction
        self.provenance = Provenance()
        self.classes: dict[str, list[str]] = {}  # entries of the index
        self.configs: dict[str, Mapping[str, Any]] = {}
        self.settings = PRESETS["sd21"].of_pipeline()  # of a new folder
        self.parts: int | None = None
        self.measures = False  # what the U-Net predicts, because nothing says it
        self.predicts_noise: bool | None = None

    def run(self, items: Sequence[Item], progress: Callable[[int, int, str], None]) -> list[Row]:
        """Read all and write the components to `fresh`."""
        self._prepare(items)
        loras = [(item, self._read(item)) for item in items if item.component == "lora"]
        rest = sorted((item for item in items if item.component != "lora"), key=_order)
        groups = [(name, list(group)) for name, group in groupby(rest, key=lambda item: item.component)]
        updates = [read.network for _, read in loras]
        rows: list[Row] = []
        for done, (name, group) in enumerate(groups):
            progress(done, len(groups), name)
            rows += self._component(name, group, updates)
        targets = {target for lora in updates for target, layers in lora.updates.items() if layers}
        for target in sorted(targets - self.configs.keys()):
            network = load_component(self.out, target, folders.stored_dtype(self.out / target))
            self._save(target, self._merged(target, network, updates))
        progress(len(groups), len(groups), "done")
        return rows + [self._row(item, read) for item, read in loras]

    def _prepare(self, items: Sequence[Item]) -> None:
        if self.fresh is not None:
            shutil.rmtree(self.fresh, ignore_errors=True)
            self.fresh.mkdir(parents=True)
        for folder in {item.checkpoint.path for item in items if item.checkpoint.folder}:
            index = _json(folder / INDEX)
            self.settings |= {name: index[name] for name in self.settings if name in index}
        found = [item.found.config for item in items if item.component == "scheduler"]
        self.measures = self.prediction is None and any("stated" not in config for config in found)

    def _component(self, name: str, group: list[Item], updates: list[Any]) -> list[Row]:
        reads = [self._read(item) for item in group]
        network = reads[0].network
        if isinstance(network, tiny_autoencoder.Half):
            halves = {
                item.found.component.partition(".")[2]: read.network for item, read in zip(group, reads, strict=True)
            }
            network = tiny_autoencoder.join(halves)
        if isinstance(network, PartNet):
            self.parts = network.part_count
        if name == "control":
            network = with_parts(network, self._part_count(network))
        network = self._merged(name, network, updates)
        if name == "unet" and self.measures:
            self.predicts_noise = schedules.predicts_noise(network)
        self._save(name, network)
        return [self._row(item, read) for item, read in zip(group, reads, strict=True)]

    def _read(self, item: Item) -> Imported:
        found = item.found
        if item.component == "scheduler":
            found = replace(found, config={**found.config, "prediction": self._prediction(item)})
        return _complete(item.source, item.checkpoint, item.source.read, found)

    def _row(self, item: Item, read: Imported) -> Row:
        return self.provenance.row(item.source.NAME, item.checkpoint, item.found, read)

    def _prediction(self, item: Item) -> str:
        """What the U-Net predicts: as asked, as the file says, or as the U-Net does.

        Raises:
            ValueError: it predicts v, and nothing says how noisy the last step is.
        """
        stated = self.prediction or item.found.config.get("stated")
        if stated or self.predicts_noise is not False:
            return stated or "epsilon"
        if item.found.config["zero_snr"] is None:
            raise ValueError(
                f"{item.checkpoint.path}: its U-Net does not predict noise, and the file does not say its schedule: "
                "give --prediction v (Stable Diffusion 2.1 of 768 pixels), v-zero-snr (DiffBIR v2.1's) or epsilon"
            )
        return "v-zero-snr" if item.found.config["zero_snr"] else "v"

    def _part_count(self, control: Any) -> int:
        """K of the part network, imported along or there already; or else the control branch's own."""
        if self.parts is None and (config := _config(self.out / "parts")):
            with torch.device("meta"):
                self.parts = PartNet.from_config(config).part_count
        return control.config["part_count"] if self.parts is None else self.parts

    def _merged(self, name: str, network: Any, updates: list[Any]) -> Any:
        for lora in updates:
            lora.merge(name, network)
        return network

    def _save(self, name: str, network: Any) -> None:
        library = type(network).__module__.partition(".")[0]
        own = type(network).__module__ if library == "diffbody_ref" else library
        self.classes[name] = [own, type(network).__name__]
        config = getattr(network, "config", {})
        self.configs[name] = config.to_dict() if hasattr(config, "to_dict") else config
        if self.fresh is None:
            return
        if name == "tokenizer":
            save_tokenizer(network, self.fresh / name)
        else:
            network.save_pretrained(self.fresh / name)

    def finish(self, rows: Sequence[Row]) -> None:
        """Check that the components fit together, add those of OUT that stay, and put the new folder in its place.

        Raises:
            ValueError: they do not fit, or OUT holds updates of a U-Net that is replaced.
        """
        self._check_fit()
        if self.fresh is None:
            return
        if "unet" in self.configs and (self.out / folders.LORA_FOLDER).exists():
            raise ValueError(
                f"{self.out / folders.LORA_FOLDER}: updates of the U-Net that is there now, and would be replaced; "
                "release that model first, then remove this folder"
            )
        for path in sorted(self.out.iterdir()) if self.out.is_dir() else ():
            if not (self.fresh / path.name).exists() and path.name != INDEX:
                _link(path, self.fresh / path.name)
        text = json.dumps(self._index(rows), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (self.fresh / INDEX).write_text(text, encoding="utf-8")
        replace_folder(self.fresh, self.out)

    def _index(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`model_index.json`: what was there of components that stay, and the new ones with where they come from."""
        before = _json(self.out / INDEX) or {"_class_name": "DiffBodyPipeline", **self.settings}
        kept = [row for row in before.get(RECORD, []) if row["component"].partition(".")[0] not in self.configs]
        return {**before, **self.classes, RECORD: [*kept, *map(asdict, rows)]}

    def _check_fit(self) -> None:
        for one, other, names in TIES:
            configs = [self.configs.get(name) or _config(self.out / name) for name in (one, other)]
            for name in names:
                left, right = (name, name) if isinstance(name, str) else name
                if not all(configs) or configs[0].get(left) is None:
                    continue
                values = [_plain(configs[0][left]), _plain(configs[1].get(right))]
                if values[0] != values[1]:
                    raise ValueError(f"{one} and {other} do not fit: {left} is {values[0]}, {right} is {values[1]}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    """The settings in a file of our own; {} if it is not there.

    Raises:
        ValueError: it holds none.
    """
    return folders.read_json(path) if path.is_file() else {}


def _link(path: Path, to: Path) -> None:
    """Hard links, which take no space, or copies where the file system has none."""

    def one(source: str, target: str) -> str:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
        return target

    if path.is_dir():
        shutil.copytree(path, to, copy_function=one)
    else:
        one(str(path), str(to))
