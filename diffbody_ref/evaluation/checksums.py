"""Checksums of a model: results that were measured before are those of the same networks, or are not used."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffbody_ref.pipeline import DiffBodyPipeline

UNUSED_KEYS = ("transformers_version", "architectures", "dtype", "torch_dtype")  # of configurations


def weights_checksum(pipeline: DiffBodyPipeline) -> str:
    """CRC-32 of all tensors of all networks, as hexadecimal; it detects a retrained model in the same folder."""
    checksum = 0
    for name, component in sorted(pipeline.components.items()):
        for key, tensor in component.state_dict().items() if isinstance(component, torch.nn.Module) else ():
            checksum = zlib.crc32(f"{name}.{key}".encode(), checksum)
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            checksum = zlib.crc32(memoryview(raw.numpy()), checksum)
    return f"{checksum:08x}"


def configuration_checksum(pipeline: DiffBodyPipeline) -> str:
    """CRC-32 of what all components are configured to, and of the vocabulary, without names and versions."""
    checksum = 0
    for name, component in sorted(pipeline.components.items()):
        config = getattr(component, "config", None) or {}
        values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        known = {key: value for key, value in values.items() if key[0] != "_" and key not in UNUSED_KEYS}
        if hasattr(component, "get_vocab"):
            known["vocabulary"] = component.get_vocab()
        checksum = zlib.crc32(json.dumps([name, known], sort_keys=True, default=str).encode(), checksum)
    return f"{checksum:08x}"
