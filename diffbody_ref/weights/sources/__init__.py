"""Sources of public weights: a module each, with `NAME`, `detect` and `read` as `weights.found.Source` says."""

from __future__ import annotations

from diffbody_ref.weights.found import Source
from diffbody_ref.weights.sources import (
    bpbreid,
    diffbir,
    folders,
    graphs,
    lora,
    rtmpose,
    stable_diffusion,
    swinir,
    tiny_autoencoder,
    yolox,
)

SOURCES: tuple[Source, ...] = (
    folders,
    stable_diffusion,
    diffbir,
    swinir,
    bpbreid,
    rtmpose,
    yolox,
    graphs,
    tiny_autoencoder,
    lora,
)
"""Every source. What one of them recognises, no other one does."""
