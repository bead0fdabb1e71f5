"""What the results of `diffbody restore` depend on beside their sources."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbody.cli.options import OutputOptions
from diffbody.files import Recipe, sha256_of
from diffbody_ref import __version__
from runtime.bundle import MANIFEST

if TYPE_CHECKING:
    from runtime.triton.connection import ServedBundle


def recipe(call: dict[str, Any], outputs: OutputOptions, model: str) -> Recipe:
    """What results depend on beside their sources. Engine and device are not in it: they agree within rounding.

    Args:
        call: keyword arguments of the restoration.
        model: what `by_bundle`, `by_pytorch` or `by_servers` says.
    """
    settings = {**call, "quality": outputs.quality, "strip_metadata": outputs.strip_metadata}
    return Recipe(settings, model, __version__)


def by_bundle(folder: Path, precision: str) -> str:
    """The model where a bundle restores, by its manifest's hash."""
    return f"bundle:{precision}:{sha256_of(folder / MANIFEST)}"


def by_pytorch(folder: Path) -> str:
    """The model where PyTorch restores."""
    return f"pytorch:{hash_of_model(folder)}"


def by_servers(bundle: ServedBundle) -> str:
    """The model where servers restore: the same as here, if they have the same bundle."""
    return f"bundle:{bundle.precision}:{bundle.sha256}"


def hash_of_model(folder: Path) -> str:
    """A hash of the files that PyTorch reads of a model's folder: configurations, vocabulary and weights."""
    suffixes = (".json", ".txt", ".safetensors", ".bin")
    paths = sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    hashes = [(path.relative_to(folder).as_posix(), sha256_of(path)) for path in paths]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
