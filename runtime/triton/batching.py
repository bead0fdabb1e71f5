"""Running what can go through a network together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def run_in_groups(
    items: Sequence[T], key: Callable[[T], Hashable], run: Callable[[list[T]], Sequence[R]]
) -> list[R | Exception]:
    """Run the items of equal keys together; where a group fails, its error is the result of each of its items.

    Args:
        items: what is to be run.
        key: items whose keys are equal form a group.
        run: a group → a result for each of its items.

    Returns:
        A result or an error for each item, in the items' order.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(key(item), []).append(place)
    results: dict[int, R | Exception] = {}
    for places in groups.values():
        try:
            results.update(zip(places, run([items[place] for place in places]), strict=True))
        except Exception as error:
            results.update(dict.fromkeys(places, error))
    return [results[place] for place in range(len(items))]
