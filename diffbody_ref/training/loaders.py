"""What all data loaders of a run have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

PREFETCHED = 4  # batches that a worker prepares ahead
LONGEST = 400  # characters of an error that workers report

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Failure:
    """An error on the way from a worker: raised there, it would arrive as the text of a traceback."""

    message: str


class _Samples(Dataset):
    """The results of a function by its arguments, as a torch dataset."""

    def __init__(self, read: Callable[..., Arrays]) -> None:
        self.read = read

    def __getitem__(self, key: Any) -> Arrays | _Failure:
        try:
            return self.read(*key) if isinstance(key, tuple) else self.read(key)
        except OSError as error:
            known = error.filename is not None and error.strerror
            return _Failure(f"{error.filename}: {error.strerror}" if known else str(error))
        except ValueError as error:
            return _Failure(str(error))


def load_batches(read: Callable[..., Arrays], batches: Any, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of samples, prepared by worker processes of one thread each.

    Args:
        read: returns a sample; runs in the workers.
        batches: an iterable of lists of the arguments of `read`.
        workers: number of processes; 0 reads in this one.

    Raises:
        ValueError: a sample cannot be read; the message is that of `read`.
        MemoryError: a worker was killed, most likely because memory ran out.
    """
    options: dict[str, Any] = {"num_workers": workers, "worker_init_fn": use_one_thread}
    if workers:
        options["prefetch_factor"] = PREFETCHED
    pinned = torch.cuda.is_available()
    loader = DataLoader(_Samples(read), batch_sampler=batches, collate_fn=_collate, pin_memory=pinned, **options)
    try:
        for batch in loader:
            if isinstance(batch, _Failure):
                raise ValueError(batch.message[:LONGEST])
            yield batch
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise MemoryError(
            f"a process that reads pictures was killed ({str(error)[:LONGEST]}); if memory ran out, use fewer workers"
        ) from None


def _collate(samples: list[Arrays | _Failure]) -> Any:
    """The batch of the samples, or the first failure among them."""
    return next((sample for sample in samples if isinstance(sample, _Failure)), None) or default_collate(samples)


def use_one_thread(_: int) -> None:
    """Restrict a worker to one thread: many workers with many threads each would compete for the cores."""
    torch.set_num_threads(1)
