"""What the results of `diffbody restore` depend on beside their sources."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from diffbody.cli.options import OutputOptions
from diffbody.files import Recipe, sha256_of
from diffbody_ref import __version__
from diffbody_ref.ops.files import files_below
from runtime.bundle import MANIFEST


def recipe(
    call: dict[str, Any], outputs: OutputOptions, folder: Path | None, with_pytorch: bool, precision: str
) -> Recipe:
    """What results depend on beside their sources. Engine and device are not in it: they agree within rounding.

    Args:
        folder: of the bundle or the model; None is a server's, which does not tell its model.
        with_pytorch: the model is run by PyTorch.
        precision: what the bundle's graphs compute in, or the format in which PyTorch keeps the weights.
    """
    settings = {**call, "quality": outputs.quality, "strip_metadata": outputs.strip_metadata}
    if folder is None:
        return Recipe(settings, None, __version__)
    model = f"pytorch:{hash_of_model(folder)}" if with_pytorch else f"bundle:{sha256_of(folder / MANIFEST)}"
    return Recipe({**settings, "precision": precision}, model, __version__)


def hash_of_model(folder: Path) -> str:
    """A hash of the files that PyTorch reads of a model's folder: configurations, vocabulary and weights.

    Raises:
        ValueError: see `ops.files.files_below`.
    """
    suffixes = (".json", ".txt", ".safetensors")
    paths = [path for path in files_below(folder) if path.suffix in suffixes]
    hashes = [(path.relative_to(folder).as_posix(), sha256_of(path)) for path in paths]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
