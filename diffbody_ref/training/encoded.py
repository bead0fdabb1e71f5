"""Outputs of frozen networks for the training data, computed once: rows of float16 arrays on disk, in shards.

A shard is a file of `SHARD` rows that is complete or not there. So the pass over the data can be interrupted at any
time, and divided among any number of processes, on any number of machines that share a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffbody_ref.ops.files import whole_file, write_whole
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.training.disk import writing
from diffbody_ref.training.loaders import Arrays, load_batches

SHARD = 64  # rows per shard
NETWORK_FILES = ("*.safetensors", "*.onnx", "*.json")  # of a component: weights, a graph, configurations


class EncodedRows:
    """Rows of named arrays on disk.

    Attributes:
        folder: subfolder of these rows.
        rows: number of rows when all are written.

    Args:
        folder: folder with one subfolder for each combination of settings.
        rows: number of rows when all are written.
        settings: everything that the rows depend on; other settings have another subfolder.
    """

    def __init__(self, folder: Path, rows: int, settings: dict[str, Any]) -> None:
        text = json.dumps({"rows": rows, **settings}, sort_keys=True, indent=1)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        self.rows = rows
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "settings.json", text + "\n")
        self._open: dict[int, np.ndarray] = {}

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{shard:06d}.npy"

    def rows_of(self, shard: int) -> range:
        """The numbers of the rows in a shard."""
        return range(shard * SHARD, min((shard + 1) * SHARD, self.rows))

    def missing(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        return [shard for shard in range(-(-self.rows // SHARD)) if not self.path(shard).is_file()]

    def write(self, shard: int, rows: list[Arrays]) -> None:
        """Write a shard's rows as float16."""
        kind = np.dtype([(name, np.float16, value.shape) for name, value in rows[0].items()])
        table = np.empty(len(rows), kind)
        for index, row in enumerate(rows):
            for name, value in row.items():
                table[index][name] = value
        with writing(self.path(shard)), whole_file(self.path(shard)) as temporary:
            np.save(temporary, table)

    def read(self, row: int) -> Arrays:
        """Read one row as float32."""
        shard, index = divmod(row, SHARD)
        if shard not in self._open:
            self._open[shard] = np.load(self.path(shard), mmap_mode="r")
        record = self._open[shard][index]
        return {name: record[name].astype(np.float32) for name in record.dtype.names}


def encode_missing(
    store: EncodedRows,
    read: Callable[[int], Arrays],
    encode: Callable[[dict[str, torch.Tensor]], list[Arrays]],
    accelerator: Any,
    batch_size: int,
    workers: int,
    description: str,
    progress: Progress = silent,
) -> None:
    """Encode the missing shards of a store. Each process encodes its share, and returns when all shards are written.

    Args:
        store: the store.
        read: returns the input of `encode` for a row; runs in worker processes.
        encode: encodes a batch of inputs, on the accelerator's device, to a list of rows.
        accelerator: the accelerator of the run (`accelerate.Accelerator`).
        batch_size: largest number of rows per batch. The batches of a shard do not depend on who encodes it.
        workers: number of worker processes.
        description: what the progress is called with, beside the rows done and this process's rows.
        progress: shows the progress; used by the main process only.
    """
    accelerator.wait_for_everyone()  # all processes list the missing shards before the first one writes
    missing = store.missing()
    own_shards = missing[accelerator.process_index :: accelerator.num_processes]
    accelerator.wait_for_everyone()
    batches = [
        list(store.rows_of(shard)[first : first + batch_size])
        for shard in own_shards
        for first in range(0, len(store.rows_of(shard)), batch_size)
    ]
    if batches:
        shards, rows = iter(own_shards), list[Arrays]()
        shard = next(shards)
        done, total = 0, sum(map(len, batches))
        for numbers, batch in zip(batches, load_batches(read, batches, workers), strict=True):
            rows += encode({name: value.to(accelerator.device) for name, value in batch.items()})
            done += len(numbers)
            if accelerator.is_main_process:
                progress(done, total, description)
            if len(rows) == len(store.rows_of(shard)):
                store.write(shard, rows)
                shard, rows = next(shards, -1), []
    accelerator.wait_for_everyone()


def networks_checksum(pipeline: Path, names: Sequence[str]) -> str:
    """SHA-256 of components in a pipeline folder: their weights, and their configurations without where they are from.

    A component that the folder does not hold counts as nothing.
    """
    total = hashlib.sha256()
    for name in names:
        for path in sorted(path for kind in NETWORK_FILES for path in (pipeline / name).glob(kind)):
            total.update(f"{name}/{path.name} ".encode())
            total.update(_configuration_digest(path) if path.suffix == ".json" else _weights_digest(path))
    return total.hexdigest()


def _weights_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _configuration_digest(path: Path) -> bytes:
    """Without the keys that begin with "_": the library's version, and the folder that the component was loaded from.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()
