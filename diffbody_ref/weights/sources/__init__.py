"""Sources of public weights: a module each, with `NAME`, `detect` and `read` as `weights.found.Source` says."""

from __future__ import annotations

from diffbody_ref.weights.found import Source

SOURCES: tuple[Source, ...] = ()
"""Every source. What one of them recognises, no other one does."""
