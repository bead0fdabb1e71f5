"""What PyTorch can compute on here."""

from __future__ import annotations

import warnings

import torch


def cuda_is_usable() -> bool:
    """Whether PyTorch can use a CUDA GPU. It warns of a driver that does not fit; whoever asked says what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()
