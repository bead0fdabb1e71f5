"""Captions in the fixed schema from a vision-language model (DiffBody section 3.3, supplementary section 6)."""
