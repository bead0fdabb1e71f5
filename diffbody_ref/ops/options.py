"""What can be asked of one restoration, and every default of it: for the reference, the runtime and the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffbody_ref.ops.colour import COLOUR_METHODS
from diffbody_ref.ops.samplers import NUM_TRAIN_TIMESTEPS, check_sampler, steps_to_run

MAX_UPSCALE = 16.0
MIN_TILE_SIZE = 128  # pixels
WORKING_SIDES = 64, 16384  # pixels; sd21's latent grid has no smaller side
# Pictures saturate far below it: Stable Diffusion's users stay below 30, and ε_θ overflows half precision beyond.
MAX_GUIDANCE_SCALE = 100.0
# Ten thousand times nano's. Beyond, one step moves z̃_0 by more than its whole range, whatever the gradient.
MAX_BODY_GUIDANCE_SCALE = 1e6


@dataclass(frozen=True)
class ModelSettings:
    """What a model says of every call on it; the defaults are those of the paper's size, sd21.

    Attributes:
        base_height: pictures of less area than base_height × base_width are scaled up to it, in pixels.
        base_width: see `base_height`.
        tile_size: side in pixels above which every stage works in tiles.
        guidance_scale: the model's default of the option of `RestoreOptions`, as are the following ones.
        body_guidance_scale: see `RestoreOptions`.
        strength: see `RestoreOptions`.
        use_residual: see `RestoreOptions`.
        sampler: see `RestoreOptions`.
    """

    base_height: int = 1024
    base_width: int = 512
    tile_size: int = 1024
    guidance_scale: float = 4.0  # DiffBIR's
    body_guidance_scale: float = 0.1
    strength: float = 1.0
    use_residual: bool = False
    sampler: str = "ddpm"

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ModelSettings:
        """The settings among other values, such as those of a pipeline's configuration."""
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})

    def of_pipeline(self) -> dict[str, Any]:
        """What a pipeline's configuration holds: all but the sampler, which its scheduler says."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "sampler"}

    def options(self, **asked: Any) -> RestoreOptions:
        """The options of a call: what was not asked for (None) is the model's value, or else the class's.

        Raises:
            ValueError: an unknown option, or a value out of its range.
        """
        names = [f.name for f in dataclasses.fields(RestoreOptions)]
        if unknown := asked.keys() - set(names):
            raise ValueError(f"unknown option {min(unknown)!r}; known are {', '.join(names)}")
        own = {name: value for name, value in dataclasses.asdict(self).items() if name in names}
        return RestoreOptions(**{**own, **{name: value for name, value in asked.items() if value is not None}})


PRESETS: dict[str, ModelSettings] = {
    "sd21": ModelSettings(),
    # Guidance and strength of nano are measured: see its model card.
    "nano": ModelSettings(
        base_height=256,
        base_width=128,
        tile_size=512,
        guidance_scale=1.0,
        body_guidance_scale=100.0,
        strength=0.25,
        use_residual=True,
    ),
}
"""The settings of each size that the project's networks can be built at."""


def check_preset(name: str) -> ModelSettings:
    """The row of `PRESETS`.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class RestoreOptions:
    """Settings of one restoration; checked when made.

    Attributes:
        num_inference_steps: denoising steps, 1..1000.
        guidance_scale: scale of classifier-free guidance, 0 to 100; 1 is off (one denoiser pass a step instead of two).
        body_guidance_scale: s of eq. 6's step z̃_0 ← z̃_0 − s·∇L, 0 to 1,000,000; 0 is off.
        body_guidance_start: body guidance is active at timesteps t with body_guidance_stop < t < body_guidance_start
            (DiffBIR's convention); the defaults cover every timestep.
        body_guidance_stop: see `body_guidance_start`.
        body_guidance_every: body guidance is active at every k-th step only, counted from the first.
        strength: in (0, 1]; 1 starts from noise, less starts from the regression result noised that far.
        sampler: a name in `SAMPLERS`.
        colour_fix: one of `COLOUR_METHODS`.
        use_residual: the result is D(z_0) + r − D(z_r): what the autoencoder alone loses of r stays. False: D(z_0), as
            in the paper.
        height: with `width`, the working size: the picture is brought to its area, by scaling that keeps the picture's
            aspect ratio. In pixels, 64..16384; None is the input's size, or at least the base's area.
        width: see `height`.
        upscale: output size over input size; None gives the working size, or the input's where that is larger.
        use_structure: False looks for nobody: pose and attention are empty, nothing is guided (DiffBIR's method).
        use_pose: False leaves the pose map empty; people are found and guided all the same (an ablation).
        use_attention: False leaves the attention map empty (an ablation).
        tile_size: side in pixels above which every stage works in tiles, from 128.

    Raises:
        ValueError: a value out of its range; names it.
    """

    num_inference_steps: int = 50
    guidance_scale: float = ModelSettings.guidance_scale
    body_guidance_scale: float = ModelSettings.body_guidance_scale
    body_guidance_start: int = NUM_TRAIN_TIMESTEPS + 1
    body_guidance_stop: int = -1
    body_guidance_every: int = 1
    strength: float = ModelSettings.strength
    sampler: str = ModelSettings.sampler
    colour_fix: str = "wavelet"
    use_residual: bool = ModelSettings.use_residual
    height: int | None = None
    width: int | None = None
    upscale: float | None = None
    use_structure: bool = True
    use_pose: bool = True
    use_attention: bool = True
    tile_size: int = ModelSettings.tile_size

    def __post_init__(self) -> None:
        steps_to_run(self.num_inference_steps, self.strength)
        check_sampler(self.sampler)
        scales = {"guidance_scale": MAX_GUIDANCE_SCALE, "body_guidance_scale": MAX_BODY_GUIDANCE_SCALE}
        for name, most in scales.items():
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name} must be in 0..{most:,.0f}, got {value}")
        if self.colour_fix not in COLOUR_METHODS:
            raise ValueError(f"unknown colour_fix {self.colour_fix!r}, choose one of {', '.join(COLOUR_METHODS)}")
        if self.upscale is not None and not 0 < self.upscale <= MAX_UPSCALE:
            raise ValueError(f"upscale must be above 0 and at most {MAX_UPSCALE:g}, got {self.upscale}")
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width: give both, or none of them")
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and not WORKING_SIDES[0] <= side <= WORKING_SIDES[1]:
                raise ValueError(f"{name} must be in {WORKING_SIDES[0]}..{WORKING_SIDES[1]} pixels, got {side}")
        if self.tile_size < MIN_TILE_SIZE:
            raise ValueError(f"tile_size must be at least {MIN_TILE_SIZE} pixels, got {self.tile_size}")
        if self.body_guidance_every < 1:
            raise ValueError(f"body_guidance_every must be at least 1, got {self.body_guidance_every}")
        if not -1 <= self.body_guidance_stop < self.body_guidance_start <= NUM_TRAIN_TIMESTEPS + 1:
            raise ValueError(
                f"body guidance needs -1 <= stop < start <= {NUM_TRAIN_TIMESTEPS + 1}, got "
                f"stop {self.body_guidance_stop} and start {self.body_guidance_start}"
            )

    def guides(self, timestep: int, step: int) -> bool:
        """Whether body guidance is active at a step.

        Args:
            timestep: t, 0..999.
            step: number of the sampling step, from 0.
        """
        in_range = self.body_guidance_stop < timestep < self.body_guidance_start
        return self.body_guidance_scale > 0 and in_range and step % self.body_guidance_every == 0
