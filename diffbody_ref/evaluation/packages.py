"""Optional packages that hold the code or the weights of methods and metrics."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


class UnavailableError(Exception):
    """A method or metric cannot run on this machine; the message says why, and what would help."""


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing the package.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {name} is not installed", name=name)
    return Path(spec.submodule_search_locations[0])


def is_installed(name: str) -> bool:
    """Whether a package is installed; the package is not imported."""
    return find_spec(name) is not None
