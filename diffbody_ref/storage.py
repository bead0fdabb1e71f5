"""How a pipeline keeps its networks: in which number format, and how many of them in memory at a time."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as LayerHook
from torch import Tensor, nn
from transformers import CLIPTextModel

from diffbody_ref.components import COMPONENT_CLASSES, component_class, components_of, load_component
from diffbody_ref.models.graphs import GraphModel
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.pipeline import DiffBodyPipeline

# Of sd21's 1.8 billion parameters all but 0.2 are theirs. The others are float32 where a CPU has to cast: the gradient
# of eq. 6 goes through two of them, and weights that come and go with a layer are not there for its way back.
LARGE = ("unet", "control", "text_encoder")
RESIDENT = 1 << 30  # bytes of networks that stay in memory beside the one that is needed
VAE_TILE = 512  # pixels: of a tile, the decoder's activations take 2 GB
CPU_FLAGS = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}  # /proc/cpuinfo's


def upcasts(device: str, dtype: str) -> bool:
    """Whether networks whose weights are kept in a number format compute in float32: the CPU has no such arithmetic.

    Args:
        device: "cpu" or "cuda".
        dtype: a name of `ops.devices.PRECISIONS`.
    """
    if device != "cpu" or dtype == "float32":
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return True
    return not flags & set(CPU_FLAGS[dtype])


def load_networks(folder: Path, device: str, dtype: str, low_memory: bool, progress: Progress) -> DiffBodyPipeline:
    """The pipeline of a folder on a device; see `diffbody_ref.loading.load_pipeline`."""
    names = network_names(folder)
    kept = torch.float32 if dtype == "float32" else getattr(torch, dtype)
    cast = upcasts(device, dtype)
    formats = {name: torch.float32 if cast and name not in LARGE else kept for name in names}
    if low_memory:
        memory = OnDemand(folder, device, formats, progress)
        networks = {name: memory.network(name) for name in names}
    else:
        networks = {}
        for done, name in enumerate(names):
            progress(done, len(names), f"loading {name}")
            networks[name] = load_component(folder, name, formats[name])
        progress(len(names), len(names), "")
    if cast:
        for name in names:
            if formats[name] != torch.float32:
                compute_in_float32(networks[name])
    pipeline: DiffBodyPipeline = DiffBodyPipeline.from_pretrained(folder, torch_dtype=kept, **networks)
    if low_memory:
        vae = pipeline.vae
        vae.enable_tiling()
        vae.tile_sample_min_size = VAE_TILE
        vae.tile_latent_min_size = VAE_TILE // pipeline.factor
        vae.enable_gradient_checkpointing()
        return pipeline
    return pipeline if device == "cpu" else pipeline.to(device)  # diffusers warns of half precision on a CPU


def network_names(folder: Path) -> list[str]:
    """The components of a pipeline's folder that have weights, in the order of `COMPONENT_CLASSES`."""
    networks = [name for name, kind in COMPONENT_CLASSES.items() if issubclass(kind, nn.Module)]
    return [name for name in components_of(folder) if name in networks and (folder / name).is_dir()]


def empty_network(folder: Path, name: str) -> nn.Module:
    """A component as its configuration says, its parameters on PyTorch's meta device: it takes no memory.

    Raises:
        ValueError: the folder holds no such configuration.
    """
    kind = component_class(folder, name)
    if issubclass(kind, GraphModel):
        return load_component(folder, name)  # its weights are read when it runs
    try:
        with init_empty_weights(include_buffers=False):
            if kind is CLIPTextModel:
                return kind(kind.config_class.from_pretrained(folder / name))
            return kind.from_config(kind.load_config(folder / name))
    except Exception as error:  # what the libraries raise for a broken file has no common class
        raise ValueError(f"{folder / name}: no {kind.__name__}: {' '.join(str(error).split())[:300]}") from error


def empty_pipeline(folder: Path) -> DiffBodyPipeline:
    """The pipeline of a folder without the networks' weights: it says its sizes and settings, but restores nothing.

    Raises:
        FileNotFoundError: see `DiffBodyPipeline.from_pretrained`.
        ValueError: see `empty_network`.
    """
    networks = {name: empty_network(folder, name) for name in network_names(folder)}
    return DiffBodyPipeline.from_pretrained(folder, **networks)


class OnDemand:
    """Networks that are read from disk when they are called, and let go of when others are.

    Where the folder's files have the number format that is asked for, their weights are mapped and not copied, so that
    reading a network again takes as long as opening its file. Between calls a network's parameters are one number that
    is seen as many, of the right shape, dtype and device.

    Args:
        folder: of the pipeline.
        device: "cpu" or "cuda".
        formats: the dtype of each network by name.
        progress: called before a network is read, with the number of those that were so far.
    """

    def __init__(self, folder: Path, device: str, formats: dict[str, torch.dtype], progress: Progress = silent) -> None:
        self.folder, self.device, self.formats, self.progress = folder, device, formats, progress
        self.networks: dict[str, nn.Module] = {}
        self.resident: OrderedDict[str, int] = OrderedDict()  # bytes by name; the one used last comes last
        self.reads = 0

    def network(self, name: str) -> nn.Module:
        """The network, to be called as any other."""
        network = empty_network(self.folder, name).requires_grad_(False).eval()
        self.networks[name] = network
        self._let_go(name)
        add_hook_to_module(network, _Needed(self, name))
        return network

    def need(self, name: str) -> None:
        """See that a network's weights are in memory, and that no more than `RESIDENT` bytes of others are."""
        if name in self.resident:
            self.resident.move_to_end(name)
            return
        self.progress(self.reads, 0, f"loading {name}")
        self.reads += 1
        size = sum(tensor.numel() for tensor in self.networks[name].parameters()) * self.formats[name].itemsize
        for other in list(self.resident):
            if sum(self.resident.values()) + size > RESIDENT:
                self._let_go(other)
        loaded = load_component(self.folder, name, self.formats[name]).to(self.device)
        self.networks[name].load_state_dict(loaded.state_dict(), assign=True)
        self.resident[name] = size

    def _let_go(self, name: str) -> None:
        network, dtype = self.networks[name], self.formats[name]

        def placeholder(tensor: Tensor) -> Tensor:
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            return torch.zeros((), dtype=kind, device=self.device).expand(tensor.shape)

        network.load_state_dict({key: placeholder(value) for key, value in network.state_dict().items()}, assign=True)
        self.resident.pop(name, None)


class _Needed(ModelHook):
    """Before a network is called, its weights are read."""

    def __init__(self, memory: OnDemand, name: str) -> None:
        self.memory, self.name = memory, name
        self.execution_device = memory.device  # where a diffusers pipeline makes its tensors

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.memory.need(self.name)
        return args, kwargs


def compute_in_float32(network: nn.Module) -> None:
    """Let a network whose weights are of half precision compute in float32, layer by layer; it has no gradient then.

    The results are those of the network in float32 with the same weights, to the bit.
    """
    for module in list(network.modules()):
        if next(module.parameters(recurse=False), None) is not None:
            # By this name, diffusers' networks say that their dtype is the hook's.
            HookRegistry.check_if_exists_or_initialize(module).register_hook(_CastWeights(), "layerwise_casting")


class _CastWeights(LayerHook):
    """diffusers' `LayerwiseCastingHook`, but the weights come back as they were, without a rounding or a copy."""

    compute_dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self._stored: list[tuple[nn.Parameter, Tensor]] = []

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._stored = [(parameter, parameter.data) for parameter in module.parameters(recurse=False)]
        for parameter, stored in self._stored:
            parameter.data = stored.to(self.compute_dtype)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        for parameter, stored in self._stored:
            parameter.data = stored
        self._stored = []
        return output
