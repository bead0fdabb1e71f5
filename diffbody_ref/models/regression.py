"""The network of step 1, y to r: SwinIR, or another that a program registers.

A regression network is a diffusers `ModelMixin` that takes pictures (B, 3, H, W) in [0, 1], of sides that are multiples
of the model's, to pictures of the same shape. It is saved in the folder `swinir` whatever its class; the configuration
there names the class.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffbody_ref.models.swinir import SwinIR

REGRESSIONS: dict[str, type[Any]] = {"SwinIR": SwinIR}
"""The classes by the name that their configuration has."""


def class_of(folder: Path) -> type[Any]:
    """The class of the network that was saved in a folder.

    Raises:
        ValueError: it is none of `REGRESSIONS`, or the configuration cannot be read.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = config.get("_class_name", "SwinIR") if isinstance(config, dict) else config
    if not isinstance(name, str) or name not in REGRESSIONS:
        raise ValueError(f"unknown regression network {str(name)[:60]!r}; known are {', '.join(REGRESSIONS)}")
    return REGRESSIONS[name]
