"""The order in which a run sees its data: a function of the seed and the sample's number alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from diffbody_ref.training.stages import Stage

PREFETCHED = 4  # batches a worker prepares ahead


class _Items(Dataset):
    """`Stage.item` as a torch dataset over (index, serial) pairs; holds the stage without its networks' gradients."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        return self.stage.item(*key)


class OrderedBatches(Sampler):
    """Batches of (index, serial) from `start` on: a seeded permutation of the data per epoch, cut among processes.

    Args:
        stage: its `order` gives the indices of one epoch.
        start: first serial number.
        samples: serial numbers to go through, batch_size × steps.
        micro_batch: samples per process and accumulation round.
    """

    def __init__(self, stage: Stage, start: int, samples: int, micro_batch: int, rank: int, world: int) -> None:
        self.stage, self.start, self.samples = stage, start, samples
        self.micro_batch, self.rank, self.world = micro_batch, rank, world

    def __len__(self) -> int:
        return (self.samples - self.start) // (self.micro_batch * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch_size = len(self.stage.order(0))
        epoch, order = -1, np.empty(0, np.int64)
        for first in range(self.start, self.samples, self.micro_batch * self.world):
            mine = range(first + self.rank * self.micro_batch, first + (self.rank + 1) * self.micro_batch)
            batch = []
            for serial in mine:
                if serial // epoch_size != epoch:
                    epoch = serial // epoch_size
                    order = self.stage.order(epoch)
                batch.append((int(order[serial % epoch_size]), serial))
            yield batch


def item_loader(stage: Stage, batches: Sampler, workers: int) -> DataLoader:
    """Batches of `stage.item`, prepared by worker processes of one thread each."""
    return DataLoader(_Items(stage), batch_sampler=batches, **loader_options(workers))


def loader_options(workers: int) -> dict:
    """What every loader of a run shares."""
    options = {"num_workers": workers, "worker_init_fn": one_thread, "pin_memory": torch.cuda.is_available()}
    return options | ({"prefetch_factor": PREFETCHED} if workers else {})


def one_thread(_: int) -> None:
    """Many workers of many threads each would fight for the cores."""
    torch.set_num_threads(1)
