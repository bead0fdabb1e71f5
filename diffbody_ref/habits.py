"""What users of diffusers call on any pipeline, besides the pipeline itself; `docs/diffusers.md` has the whole list."""

from __future__ import annotations

from typing import Any, NoReturn

from diffusers.loaders import StableDiffusionLoraLoaderMixin


class DiffusersHabits(StableDiffusionLoraLoaderMixin):
    """Methods that a `DiffBodyPipeline` has because other pipelines have them."""

    vae: Any
    _interrupt = False

    @property
    def interrupt(self) -> bool:
        """Whether the call under way is to end; a callback sets `_interrupt`, as in diffusers."""
        return self._interrupt

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: Any, *args: Any, weight_name: str | None = None, **kwargs: Any
    ) -> None:
        """diffusers' own, of safetensors only: other files may run code.

        Raises:
            ValueError: `weight_name` is another kind of file.
        """
        if weight_name is not None and not weight_name.endswith(".safetensors"):
            raise ValueError(f"load_lora_weights: {weight_name!r} is no safetensors file; others may run code")
        asked = {**kwargs, "weight_name": weight_name, "use_safetensors": True}
        super().load_lora_weights(pretrained_model_name_or_path_or_dict, *args, **asked)

    def enable_vae_slicing(self) -> None:
        """Let the autoencoder take one picture of a batch after the other, which needs less memory."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Let the autoencoder take a batch at once."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> NoReturn:
        """
        Raises:
            ValueError: always. Every stage works in tiles anyhow, whose size a call may choose.
        """
        raise ValueError("enable_vae_tiling: every stage works in tiles already; choose their size by tile_size=512")

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """
        Raises:
            ValueError: always. accelerate's hooks cannot move the networks' buffers one by one.
        """
        raise ValueError("enable_sequential_cpu_offload is not supported; use enable_model_cpu_offload")
