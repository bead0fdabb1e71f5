"""Networks that are built without weights and filled with a checkpoint's: memory stays near one copy of the network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor

COUNTERS = r"(^|\.)num_batches_tracked$"  # counters of batch norm, which are not used; some files leave them out


def without_weights(build: Callable[[], Any]) -> Any:
    """The network that `build` makes, its parameters on the `meta` device: no random weights are drawn."""
    with init_empty_weights(include_buffers=False):
        return build().eval()


def fill(network: Any, tensors: Mapping[str, Tensor], path: Path) -> Any:
    """Give a network the tensors of its names, in the number format that they have, and return the network.

    Args:
        network: built by `without_weights`.
        tensors: by the network's names; all of them are used.
        path: the checkpoint, for error messages.

    Raises:
        ValueError: a tensor is missing, left over, of another shape or not of floats; names the first one.
    """
    own = network.state_dict()
    optional = {name for name in own if re.search(COUNTERS, name)}
    kind = f"{path}: not a {type(network).__name__} of this size"
    if missing := [name for name in own if name not in tensors and name not in optional]:
        raise ValueError(f"{kind}: {len(missing)} tensors are missing, {missing[0]} first")
    if left := [name for name in tensors if name not in own]:
        raise ValueError(f"{kind}: {len(left)} tensors are left over, {left[0]} first")
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise ValueError(f"{kind}: {name} is {tuple(value.shape)}, must be {tuple(own[name].shape)}")
        if own[name].is_floating_point() and not value.is_floating_point():
            raise ValueError(f"{kind}: {name} holds {value.dtype}, not floats")
    network.load_state_dict(dict(tensors), strict=False, assign=True)
    return network


def split(tensors: Mapping[str, Tensor], reasons: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Divide tensors into those to use and those to ignore.

    Args:
        tensors: by name.
        reasons: by a regular expression that is searched for in the names, why such tensors are ignored.

    Returns:
        The tensors that no expression matches, and the reason for each name that one does.
    """
    ignored = {
        name: reason for name in tensors for pattern, reason in reasons.items() if re.search(pattern, name) is not None
    }
    return {name: value for name, value in tensors.items() if name not in ignored}, ignored


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def count_layers(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that a regular expression's group finds in names; 0 if it finds none."""
    return 1 + max((int(found[1]) for name in names if (found := re.search(pattern, name))), default=-1)
