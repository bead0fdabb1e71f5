"""What all data loaders of a run have in common."""

from __future__ import annotations

import torch

PREFETCHED = 4  # batches that a worker prepares ahead


def loader_options(workers: int) -> dict:
    """Arguments of `torch.utils.data.DataLoader` for `workers` processes of one thread each."""
    options = {"num_workers": workers, "worker_init_fn": use_one_thread, "pin_memory": torch.cuda.is_available()}
    return options | ({"prefetch_factor": PREFETCHED} if workers else {})


def use_one_thread(_: int) -> None:
    """Restrict a worker to one thread: many workers with many threads each would compete for the cores."""
    torch.set_num_threads(1)
