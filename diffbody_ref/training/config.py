"""The training configuration: one typed dataclass, read from a TOML file."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from diffbody_ref.data.degradations import DegradationConfig

Config = TypeVar("Config")

CHOICES = {
    "optimizer": ("adamw", "muon"),
    "mixed_precision": ("no", "bf16", "fp16"),
}
# What a stage can train; every stage can train all that it has, "full".
TUNINGS = {
    "diffusion": ("full", "control", "lora"),
    "vae": ("full", "decoder"),
    "pose": ("full", "keypoints"),
}


@dataclass(frozen=True)
class TrainConfig:
    """What one training run needs. Relative paths are relative to the folder where the command runs.

    Attributes:
        stage: a name of `diffbody_ref.training.stages.STAGES`.
        preset: sizes of components that `pipeline` does not hold yet: "sd21" or "nano".
        pipeline: folder in diffusers' layout; frozen components are read from it, trained ones are written to it.
        data: folders of pictures, in any format of `diffbody_ref.data.readers`; "FOLDER:SPLIT" takes one split of it.
            The stages `pose` and `parts` need the labels that `diffbody synth` writes.
        height, width: of training pictures in pixels, others are scaled and cut to that; 0 is the preset's base size.
        output: checkpoints, log and sample pictures of this run.
        steps, batch_size: optimizer steps and pictures per step over all processes and accumulation rounds.
        accumulation: gradient accumulation rounds per step.
        optimizer: "adamw", or "muon" (`diffbody_ref.training.muon`), which learns in fewer steps.
        learning_rate, warmup_steps, weight_decay, max_grad_norm: of the optimizer (AdamW with weight_decay 0 is Adam).
            The rate falls to `final_rate` times its peak on a half cosine; 1 keeps it constant.
        ema_decay: exponential moving average of the weights; the average is what is saved.
        crop: side of random square training crops in pixels; 0 uses whole pictures.
        caption_dropout: probability of an empty caption, for classifier-free guidance.
        variants: degradations encoded ahead per picture by the diffusion stage.
        structure: False trains without pose and attention (DiffBIR's method).
        snr_gamma: min-SNR loss weight γ (Hang et al. 2023, arXiv:2303.09556); 0 is the plain loss of eq. 4.
        timestep_power: timesteps are drawn as T·u^power, u uniform in [0, 1): 1 is uniform (eq. 4), and more trains
            rather on little noise, which is all that sampling at a low strength meets.
        pixel_weight: of the part maps' cross-entropy beside the identity losses; BPBReID's 0.35 is for a backbone that
            was trained on ImageNet, one trained from nothing needs more.
        overlap_weight: of the part maps' overlap with the true ones (`parts_losses.overlap_loss`), 0 in BPBReID.
        relative_loss: eq. 2 divided by the error of the degraded picture, so that a mild degradation counts as much as
            a heavy one, as it does in a mean of decibels; False is the plain eq. 2.
        tuning: what the stage trains. "full" is all of it; the diffusion stage (text encoder, U-Net and control branch)
            also has "control" (the control branch alone, as ControlNet, DiffBIR and the paper) and "lora" (the control
            branch, and low-rank updates of the U-Net's attention; Hu et al. 2021, arXiv:2106.09685), `vae` has
            "decoder" (the latents stay what they are), `pose` has "keypoints" (the person detector stays).
        lora_rank: rank of those updates; their scale α/rank is 1.
        cache_text: encode the captions once, ahead, where the text encoder is frozen.
        mixed_precision: "no", "bf16" or "fp16" (CUDA only). Frozen networks are held in it as well.
        gradient_checkpointing: compute activations twice instead of keeping them: less memory, a third more time.
        compile: `torch.compile` of the trained networks; the first step takes a minute or more.
        minutes: training time over all calls at which the run is finished, whatever step it has reached; the learning
            rate falls with whichever of time and steps is further. The weights then depend on the machine's speed.
            0: no limit.
        tensorboard: also write scalars and sample pictures to `output`/tensorboard.
        seed: of the order of the data, of all that is random in a sample, and of noise and fresh weights.
        checkpoint_every, sample_every, log_every: steps between checkpoints, sample pictures and lines of the log.
        workers: processes that read and degrade pictures; 0 does it in the training process.
        degradation: ranges of the degradations, see `DegradationConfig`.
    """

    stage: str
    preset: str
    pipeline: str
    data: tuple[str, ...]
    output: str
    steps: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adamw"
    accumulation: int = 1
    warmup_steps: int = 100
    final_rate: float = 1.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    height: int = 0
    width: int = 0
    crop: int = 0
    caption_dropout: float = 0.1
    variants: int = 1
    structure: bool = True
    snr_gamma: float = 0.0
    timestep_power: float = 1.0
    pixel_weight: float = 0.35
    overlap_weight: float = 0.0
    relative_loss: bool = False
    tuning: str = "full"
    lora_rank: int = 16
    cache_text: bool = True
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    minutes: float = 0.0
    tensorboard: bool = False
    checkpoint_every: int = 500
    sample_every: int = 500
    log_every: int = 20
    workers: int = 1
    degradation: DegradationConfig = field(default_factory=DegradationConfig)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulation",
            "checkpoint_every",
            "sample_every",
            "log_every",
            "variants",
            "lora_rank",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be a positive number")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        if not (math.isfinite(self.timestep_power) and self.timestep_power > 0):
            raise ValueError(f"timestep_power is {self.timestep_power}; it must be a positive number")
        if not (math.isfinite(self.minutes) and self.minutes >= 0):
            raise ValueError(f"minutes is {self.minutes}; it must be a number from 0")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if self.tuning not in (tunings := TUNINGS.get(self.stage, ("full",))):
            raise ValueError(f"tuning is {self.tuning!r}; the stage {self.stage!r} has {', '.join(tunings)}")


def load_config(path: Path) -> TrainConfig:
    """Read a TOML file.

    Raises:
        ValueError: not TOML, an unknown or missing key, or a value of the wrong type; names the file and the key.
        FileNotFoundError: no such file.
    """
    return read_toml(path, TrainConfig)


def read_toml(path: Path, kind: type[Config]) -> Config:
    """A dataclass from a TOML file; raises as `load_config`."""
    try:
        return _build(kind, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    """A dataclass from a mapping, every value checked against the field's type."""
    hints = get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"unknown key {name!r}; known are {', '.join(known)}")
    for name, f in known.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"the key {name!r} is missing")
    return kind(**{name: _convert(name, hints[name], value) for name, value in values.items()})


def _convert(name: str, hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value)  # type: ignore[arg-type]
    if getattr(hint, "__origin__", None) is tuple and isinstance(value, list):
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is not hint:
        raise ValueError(f"{name} is {value!r}; it must be of type {hint.__name__}")
    return value
