"""DiffBody, the method: networks, sampler, guidance, training and data in plain PyTorch and diffusers."""

__version__ = "0.1.0"
