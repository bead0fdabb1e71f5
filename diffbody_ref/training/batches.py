"""The order in which a run reads its data, which depends only on the seed and the number of the sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from diffbody_ref.training.stages.base import TrainingStage


class OrderedBatches(Sampler):
    """Batches of (index, serial): a seeded permutation of the data in each epoch, divided among the processes.

    Args:
        stage: the stage; its `order` gives the indices of one epoch.
        start: first serial number.
        samples: end of the serial numbers, batch_size × steps.
        micro_batch: samples per process and accumulation round.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, stage: TrainingStage, start: int, samples: int, micro_batch: int, rank: int, world: int) -> None:
        self.stage, self.start, self.samples = stage, start, samples
        self.micro_batch, self.rank, self.world = micro_batch, rank, world

    def __len__(self) -> int:
        return (self.samples - self.start) // (self.micro_batch * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch_size = len(self.stage.order(0))
        epoch, order = -1, np.empty(0, np.int64)
        for first in range(self.start, self.samples, self.micro_batch * self.world):
            serials = range(first + self.rank * self.micro_batch, first + (self.rank + 1) * self.micro_batch)
            batch = []
            for serial in serials:
                if serial // epoch_size != epoch:
                    epoch = serial // epoch_size
                    order = self.stage.order(epoch)
                batch.append((int(order[serial % epoch_size]), serial))
            yield batch
