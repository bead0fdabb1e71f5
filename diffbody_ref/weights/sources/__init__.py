"""Sources of public weights: a module each, with `NAME`, `detect` and `read` as `weights.found.Source` says."""

from __future__ import annotations

from diffbody_ref.weights.found import Source
from diffbody_ref.weights.sources import diffbir, folders, lora, stable_diffusion, swinir, tiny_autoencoder

SOURCES: tuple[Source, ...] = (folders, stable_diffusion, diffbir, swinir, tiny_autoencoder, lora)
"""Every source. What one of them recognises, no other one does."""
