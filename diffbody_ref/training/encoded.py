"""What frozen networks say of the data, computed once: rows of float16 arrays on disk, in shards.

A shard is a file of `SHARD` rows, there whole or not at all; so the pass over the data can be cut at any time, and
shared among any number of processes, on any number of machines with a common folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from diffbody_ref.training.batches import loader_options

SHARD = 64  # rows
Arrays = dict[str, np.ndarray]


class EncodedRows:
    """Rows of named arrays.

    Args:
        folder: holds one subfolder for each settings that rows were made with.
        rows: how many there will be.
        settings: whatever the rows depend on; other settings, other rows.
    """

    def __init__(self, folder: Path, rows: int, settings: dict[str, Any]) -> None:
        text = json.dumps({"rows": rows, **settings}, sort_keys=True, indent=1)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        self.rows = rows
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(text + "\n")
        self._open: dict[int, np.ndarray] = {}

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npy"

    def rows_of(self, shard: int) -> range:
        return range(shard * SHARD, min((shard + 1) * SHARD, self.rows))

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        return [shard for shard in range(-(-self.rows // SHARD)) if not self.path(shard).is_file()]

    def write(self, shard: int, rows: list[Arrays]) -> None:
        kind = np.dtype([(name, np.float16, value.shape) for name, value in rows[0].items()])
        table = np.empty(len(rows), kind)
        for index, row in enumerate(rows):
            for name, value in row.items():
                table[index][name] = value
        scratch = self.path(shard).with_suffix(".tmp.npy")
        np.save(scratch, table)
        scratch.replace(self.path(shard))

    def read(self, row: int) -> Arrays:
        """One row, float32."""
        shard, index = divmod(row, SHARD)
        if shard not in self._open:
            self._open[shard] = np.load(self.path(shard), mmap_mode="r")
        record = self._open[shard][index]
        return {name: record[name].astype(np.float32) for name in record.dtype.names}


class _Inputs(Dataset):
    def __init__(self, read: Callable[[int], Arrays]) -> None:
        self.read = read

    def __getitem__(self, row: int) -> Arrays:
        return self.read(row)


def encode_missing(
    store: EncodedRows,
    read: Callable[[int], Arrays],
    encode: Callable[[dict[str, torch.Tensor]], list[Arrays]],
    accelerator: Any,
    batch_size: int,
    workers: int,
    description: str,
) -> None:
    """Fill the store: every process takes its share of the missing shards; all have returned once all are there.

    Args:
        read: a row's input to `encode`; runs in worker processes.
        encode: a batch of inputs, on the accelerator's device, to a row each.
        batch_size: rows at once, at most. A shard is cut in the same batches whoever encodes it.
    """
    accelerator.wait_for_everyone()  # all of them look before the first one writes
    missing = store.missing()
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    accelerator.wait_for_everyone()
    batches = [
        list(store.rows_of(shard)[first : first + batch_size])
        for shard in mine
        for first in range(0, len(store.rows_of(shard)), batch_size)
    ]
    if batches:
        loader = DataLoader(_Inputs(read), batch_sampler=batches, **loader_options(workers))
        shards, rows = iter(mine), list[Arrays]()
        shard = next(shards)
        for batch in track(loader, description=description, disable=not accelerator.is_main_process):
            rows += encode({name: value.to(accelerator.device) for name, value in batch.items()})
            if len(rows) == len(store.rows_of(shard)):
                store.write(shard, rows)
                shard, rows = next(shards, -1), []
    accelerator.wait_for_everyone()


def files_checksum(folders: list[Path]) -> str:
    """SHA-256 over the weights in component folders."""
    total = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.glob("*.safetensors")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def text_checksum(lines: list[str]) -> str:
    """SHA-256 of a list of strings."""
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()
