"""Synthetic pictures of people, rendered from a parametric body, with labels that line up to the pixel."""
