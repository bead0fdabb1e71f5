"""Names of devices and of precisions, as every door of the project takes them."""

from __future__ import annotations

DEVICES = ("auto", "cpu", "cuda")
""" "auto" is a CUDA GPU where there is one and what runs can use it, else the CPU."""

PRECISIONS = ("float32", "float16", "bfloat16")
"""What networks calculate in, by PyTorch's names."""


def check_device(name: str, label: str = "device") -> str:
    """The name itself.

    Raises:
        ValueError: it is not one of `DEVICES`; the message calls it `label`.
    """
    if name not in DEVICES:
        raise ValueError(f"unknown {label} {name!r}, choose one of {', '.join(DEVICES)}")
    return name
