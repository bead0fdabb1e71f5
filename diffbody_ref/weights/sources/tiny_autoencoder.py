"""Tiny autoencoders in TAESD's layout: encoder and decoder, each a file of numbered layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderTiny
from torch import Tensor

from diffbody_ref.weights.checkpoint import Checkpoint
from diffbody_ref.weights.filling import below, count_layers, fill, without_weights
from diffbody_ref.weights.found import Found, Imported

NAME = "TAESD"
LICENCE = "MIT (TAESD)"
LAYER = r"^(\d+)\."
HALVES = ("encoder", "decoder")
# Half, prefix and number of its first layer: TAESD's decoder begins with a clamp, which is no layer of diffusers'.
LAYOUTS = (("encoder", "", 0), ("decoder", "", 1), ("encoder", "encoder.layers.", 0), ("decoder", "decoder.layers.", 0))


@dataclass(frozen=True)
class Half:
    """An encoder or a decoder, and the sizes that its shapes say."""

    config: Mapping[str, Any]
    network: Any

    def parameters(self) -> Iterator[Tensor]:
        """The parameters, as those of a module."""
        return self.network.parameters()


def detect(checkpoint: Checkpoint) -> list[Found]:
    """An encoder or a decoder in TAESD's layout, or the halves of diffusers' in one file."""
    found = []
    for half, prefix, first in LAYOUTS:
        tensors = below(checkpoint.tensors, prefix)
        # An encoder begins with a convolution and a block; a decoder with a convolution, a ReLU and a block.
        block = first + (1 if half == "encoder" else 2)
        if f"{first}.weight" not in tensors or f"{block}.conv.0.weight" not in tensors:
            continue
        if f"{first - 1}.weight" in tensors or not all(re.match(LAYER, name) for name in tensors):
            continue
        blocks, width = _blocks(tensors), tensors[f"{first}.weight"].shape[0]
        last = tensors[f"{count_layers(tensors, LAYER) - 1}.weight"]
        latent = last.shape[0] if half == "encoder" else tensors[f"{first}.weight"].shape[1]
        what = f"{half} of {sum(blocks)} blocks of {width} channels, {latent} latent channels"
        config = {"prefix": prefix, "first": first, "blocks": blocks, "width": width, "latent": latent}
        found.append(Found(f"tiny_vae.{half}", what, config, (prefix,)))
    return found


def _blocks(tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """Numbers of blocks between the convolutions that change the resolution."""
    groups = [0]
    for i in range(count_layers(tensors, LAYER)):
        if f"{i}.conv.0.weight" in tensors:
            groups[-1] += 1
        elif f"{i}.weight" in tensors and f"{i}.bias" not in tensors:
            groups.append(0)
    return tuple(groups)


def read(checkpoint: Checkpoint, found: Found) -> Imported:
    """One half, a `Half`; `join` makes the network of both.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    config, half = found.config, found.component.partition(".")[2]
    tensors = below(checkpoint.tensors, config["prefix"])
    named = {
        f"layers.{int(number) - config['first']}.{rest}": tensor
        for name, tensor in tensors.items()
        for number, _, rest in [name.partition(".")]
    }
    network = getattr(without_weights(lambda: _network({half: config})), half)
    return Imported(Half(config, fill(network, named, checkpoint.path)), {}, LICENCE)


def join(halves: Mapping[str, Half]) -> AutoencoderTiny:
    """The autoencoder of its halves.

    Args:
        halves: by "encoder" and "decoder", what `read` gave.

    Raises:
        ValueError: a half is missing, or their latents differ.
    """
    if missing := [half for half in HALVES if half not in halves]:
        raise ValueError(f"tiny_vae: the {missing[0]} is missing; give its file, too")
    if len({halves[half].config["latent"] for half in HALVES}) > 1:
        raise ValueError("tiny_vae: encoder and decoder have latents of different channels")
    network = without_weights(lambda: _network({name: half.config for name, half in halves.items()}))
    for half in HALVES:
        setattr(network, half, halves[half].network)
    return network


def _network(halves: Mapping[str, Mapping[str, Any]]) -> AutoencoderTiny:
    encoder, decoder = (halves.get(half, next(iter(halves.values()))) for half in HALVES)
    return AutoencoderTiny(
        encoder_block_out_channels=(encoder["width"],) * len(encoder["blocks"]),
        decoder_block_out_channels=(decoder["width"],) * len(decoder["blocks"]),
        num_encoder_blocks=encoder["blocks"],
        num_decoder_blocks=decoder["blocks"],
        latent_channels=encoder["latent"],
    )
