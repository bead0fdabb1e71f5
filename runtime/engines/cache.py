"""Where optimised graphs are kept: the user's cache folder, which may be deleted at any time."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from runtime.bundle import FileEntry

LARGEST = 1 << 30  # bytes of weights: of larger models a second copy takes more room than the seconds are worth


def optimised_graph(files: Mapping[str, FileEntry], graph: str, device: str) -> Path | None:
    """The folder of a bundle's graph as ONNX Runtime optimised it here, named by all that it depends on.

    Args:
        files: of the bundle's manifest. graph: one of them.

    Returns:
        None where the model is too large to be kept twice.
    """
    weights = {name: entry for name, entry in files.items() if name.endswith(".safetensors")}
    if sum(entry.size for entry in weights.values()) > LARGEST:
        return None
    hashes = [files[graph].sha256, *sorted(entry.sha256 for entry in weights.values())]
    depends_on = json.dumps([version_of_onnxruntime(), device, processor(), hashes])
    return cache_folder() / f"{Path(graph).stem}-{hashlib.sha256(depends_on.encode()).hexdigest()[:32]}"


def cache_folder() -> Path:
    """DIFFBODY_CACHE, else diffbody/ in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    if own := os.environ.get("DIFFBODY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffbody"


def version_of_onnxruntime() -> str:
    """Of the package that is imported; onnxruntime and onnxruntime-gpu share the module."""
    import onnxruntime

    return onnxruntime.__version__


def processor() -> str:
    """What the memory layouts of an optimised graph depend on: the processor and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    named = {line.partition(":")[0].strip(): line for line in reversed(lines)}
    return " ".join(named.get(name, "") for name in ("model name", "flags", "Features"))
