"""DiffBody restores degraded pictures of people. The command is in `diffbody.cli`."""

from diffbody_ref import __version__

__all__ = ["__version__"]
