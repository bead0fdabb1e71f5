"""What can be asked of one restoration: shared by the reference, the runtime and the server."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffbody_ref.ops.colour import COLOUR_METHODS
from diffbody_ref.ops.schedule import NUM_TRAIN_TIMESTEPS, SAMPLERS, space_timesteps, steps_to_run

MAX_UPSCALE = 16.0


@dataclass(frozen=True)
class RestoreOptions:
    """Settings of one restoration; checked when made.

    Attributes:
        num_inference_steps: denoising steps, 1..1000.
        guidance_scale: classifier-free guidance; 1 is off (one denoiser pass a step instead of two).
        body_guidance_scale: s of eq. 6's step z̃_0 ← z̃_0 − s·∇L; 0 is off.
        body_guidance_start, body_guidance_stop: guidance is active at timesteps t with stop < t < start.
        body_guidance_every: active at every k-th step.
        strength: in (0, 1]; 1 starts from noise, less starts from the regression result noised that far.
        sampler: one of `SAMPLERS`.
        colour_fix: one of `COLOUR_METHODS`.
        use_residual: the result is D(z_0) + r − D(z_r): what the autoencoder alone loses of r stays. False: D(z_0), as
            in the paper.
        upscale: output size over input size; None gives the working size (the input's, or at least the base's area).
        use_structure: False looks for nobody: pose and attention are empty, nothing is guided (DiffBIR's method).
        use_pose, use_attention: False leaves that map empty; people are found and guided all the same (ablations).
        tile_size: side in pixels above which every stage works in tiles; None is the preset's.

    Raises:
        ValueError: a value out of its range; names it.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    body_guidance_scale: float = 0.0
    body_guidance_start: int = NUM_TRAIN_TIMESTEPS + 1
    body_guidance_stop: int = -1
    body_guidance_every: int = 1
    strength: float = 1.0
    sampler: str = "ddpm"
    colour_fix: str = "wavelet"
    use_residual: bool = False
    upscale: float | None = None
    use_structure: bool = True
    use_pose: bool = True
    use_attention: bool = True
    tile_size: int | None = None

    def __post_init__(self) -> None:
        space_timesteps(self.num_inference_steps)
        steps_to_run(self.num_inference_steps, self.strength)
        for name in ("guidance_scale", "body_guidance_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, got {value}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}, choose one of {', '.join(SAMPLERS)}")
        if self.colour_fix not in COLOUR_METHODS:
            raise ValueError(f"unknown colour_fix {self.colour_fix!r}, choose one of {', '.join(COLOUR_METHODS)}")
        if self.upscale is not None and not 0 < self.upscale <= MAX_UPSCALE:
            raise ValueError(f"upscale must be above 0 and at most {MAX_UPSCALE:g}, got {self.upscale}")
        if self.tile_size is not None and self.tile_size < 128:
            raise ValueError(f"tile_size must be at least 128 pixels, got {self.tile_size}")
        if self.body_guidance_every < 1:
            raise ValueError(f"body_guidance_every must be at least 1, got {self.body_guidance_every}")
        if not -1 <= self.body_guidance_stop < self.body_guidance_start <= NUM_TRAIN_TIMESTEPS + 1:
            raise ValueError(
                f"body guidance needs -1 <= stop < start <= {NUM_TRAIN_TIMESTEPS + 1}, got "
                f"stop {self.body_guidance_stop} and start {self.body_guidance_start}"
            )
