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
# What each stage can train; a stage that is not listed can only train everything, "full".
TUNINGS = {
    "diffusion": ("full", "control", "lora"),
    "vae": ("full", "decoder"),
    "pose": ("full", "keypoints"),
}

IMAGE_LOSSES = ("squared_weight", "l1_weight", "lpips_weight", "adversary_weight")
MIXED = ("swinir", "vae", "pose")  # the stages whose samples come in an order that they do not choose themselves


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run. Relative paths are relative to the folder where the command runs.

    Attributes:
        stage: a name of `diffbody_ref.training.stages.STAGES`.
        preset: sizes of components that `pipeline` does not contain yet: "sd21" or "nano".
        pipeline: folder in diffusers' layout; frozen components are read from it, trained ones are written to it.
        data: folders of pictures, in any format of `diffbody_ref.data.readers`; "FOLDER:SPLIT" is one split of a
            folder. The stages `pose` and `parts` need the labels that `diffbody synth` writes.
        data_weights: weight of each folder of `data` among the samples; empty takes every picture equally often.
        output: folder of this run's checkpoints, log and sample pictures.
        steps: number of optimizer steps.
        batch_size: pictures per step, over all processes and accumulation rounds.
        learning_rate: peak learning rate.
        optimizer: "adamw" (Adam if weight_decay is 0), or "muon" (`diffbody_ref.training.muon`), which needs fewer
            steps.
        accumulation: gradient accumulation rounds per step.
        warmup_steps: steps in which the learning rate rises linearly to its peak.
        final_rate: factor on the peak learning rate to which it falls along a half cosine; 1 keeps it constant.
        weight_decay: weight decay of the optimizer.
        max_grad_norm: norm to which gradients are clipped.
        ema_decay: decay of the exponential moving average of the weights; the average is saved.
        seed: seed of the order of the data, of everything random in a sample, of noise and of fresh weights.
        height: height of training pictures in pixels; others are scaled and cut to it. 0 is the preset's base size.
        width: width of training pictures in pixels; others are scaled and cut to it. 0 is the preset's base size.
        resize: False leaves pictures as large as they are, and training crops are cut from any place of them; only the
            stage `swinir` can.
        crop: side of random square training crops in pixels; 0 uses whole pictures.
        caption_dropout: probability of an empty caption, for classifier-free guidance.
        variants: degradations per picture that the diffusion stage encodes before training.
        structure: False trains without pose and attention (DiffBIR's method).
        snr_gamma: min-SNR loss weight γ (Hang et al. 2023, arXiv:2303.09556); 0 is the plain loss of eq. 4.
        timestep_power: timesteps are drawn as T·u^power, u uniform in [0, 1). 1 is uniform (eq. 4); a larger power
            draws more timesteps with little noise, the only ones that sampling at a low strength uses.
        pixel_weight: weight of the part maps' cross-entropy beside the identity losses. BPBReID's 0.35 is for a
            backbone pretrained on ImageNet; a backbone trained from scratch needs more.
        overlap_weight: weight of the loss on the part maps' overlap with the true ones (`parts_losses.overlap_loss`);
            0 in BPBReID.
        relative_loss: divide eq. 2 by the error of the degraded picture, so that a mild degradation counts as much as
            a heavy one, as it does in a mean of decibels; False is the plain eq. 2.
        squared_weight: weight of the squared error, eq. 2, in the stage `swinir`.
        l1_weight: weight of the mean absolute error.
        lpips_weight: weight of LPIPS on VGG16 (see `diffbody_ref.evaluation.lpips`).
        adversary_weight: weight of the loss against an adversary (see `diffbody_ref.training.adversary`).
        adversary_learning_rate: the adversary's peak learning rate.
        tuning: what the stage trains. "full" is everything. The diffusion stage (text encoder, U-Net and control
            branch) also has "control" (the control branch alone, as in ControlNet, DiffBIR and the paper) and "lora"
            (the control branch, and low-rank updates of the U-Net's attention; Hu et al. 2021, arXiv:2106.09685), `vae`
            has "decoder" (the latents do not change), `pose` has "keypoints" (the person detector does not change).
        lora_rank: rank of the low-rank updates; their scale α/rank is 1.
        cache_text: encode the captions once, before training, if the text encoder is frozen.
        mixed_precision: "no", "bf16" or "fp16" (CUDA only). Frozen networks are held in this precision as well.
        gradient_checkpointing: compute activations twice instead of keeping them: less memory, a third more time.
        compile: apply `torch.compile` to the trained networks; the first step then takes a minute or more.
        minutes: training time over all calls after which the run is finished, at whatever step; the learning rate
            follows time or steps, whichever is further. The weights then depend on the machine's speed. 0 is no limit.
        tensorboard: also write scalars and sample pictures to `output`/tensorboard.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between sample pictures.
        log_every: steps between lines of the log.
        held_out: folders of pictures on which the stage `swinir` is measured; none of them may be trained on.
        measure_every: steps between measures on the held-out pictures.
        workers: processes that read and degrade pictures; 0 does this in the training process.
        degradation: ranges of the degradations, see `DegradationConfig`.

    Raises:
        ValueError: a value is out of its range.
    """

    stage: str
    preset: str
    pipeline: str
    data: tuple[str, ...]
    output: str
    steps: int
    batch_size: int
    learning_rate: float
    data_weights: tuple[float, ...] = ()
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
    resize: bool = True
    crop: int = 0
    caption_dropout: float = 0.1
    variants: int = 1
    structure: bool = True
    snr_gamma: float = 0.0
    timestep_power: float = 1.0
    pixel_weight: float = 0.35
    overlap_weight: float = 0.0
    relative_loss: bool = False
    squared_weight: float = 1.0
    l1_weight: float = 0.0
    lpips_weight: float = 0.0
    adversary_weight: float = 0.0
    adversary_learning_rate: float = 1e-4
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
    held_out: tuple[str, ...] = ()
    measure_every: int = 500
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
            "measure_every",
            "variants",
            "lora_rank",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        for name in ("learning_rate", "adversary_learning_rate", "timestep_power"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise ValueError(f"{name} is {value}; it must be a positive number")
        for name in ("minutes", *IMAGE_LOSSES):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be at least 0")
        if not any(getattr(self, name) for name in IMAGE_LOSSES):
            raise ValueError(f"{', '.join(IMAGE_LOSSES)} are all 0; one must be above")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.data_weights):
            raise ValueError(f"data_weights are {self.data_weights}; each must be a positive number")
        self._check_stage()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if self.tuning not in (tunings := TUNINGS.get(self.stage, ("full",))):
            raise ValueError(f"tuning is {self.tuning!r}; the stage {self.stage!r} has {', '.join(tunings)}")

    def _check_stage(self) -> None:
        """Check that the stage has what is asked of it."""
        for name, asked in (("resize = false", not self.resize), ("held_out", bool(self.held_out))):
            if asked and self.stage != "swinir":
                raise ValueError(f"{name}: only the stage 'swinir' can do this, not {self.stage!r}")
        if self.data_weights and self.stage not in MIXED:
            raise ValueError(f"data_weights: only the stages {', '.join(MIXED)} mix folders, not {self.stage!r}")
        if self.data_weights and len(self.data_weights) != len(self.data):
            raise ValueError(f"data_weights has {len(self.data_weights)} values; data has {len(self.data)} folders")
        if not (self.resize or self.crop):
            raise ValueError("resize = false: pictures of different sizes make no batch; set crop, too")


def load_config(path: Path) -> TrainConfig:
    """Read a training configuration from a TOML file.

    Raises:
        ValueError: the file is not TOML, a key is unknown or missing, or a value has the wrong type or is out of its
            range; the message names the file and the key.
        FileNotFoundError: the file does not exist.
    """
    return read_toml(path, TrainConfig)


def read_toml(path: Path, kind: type[Config]) -> Config:
    """Read a dataclass from a TOML file; raises the errors of `load_config`."""
    try:
        return _build(kind, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    """Build a dataclass from a mapping; every value is checked against its field's type."""
    hints = get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"unknown key {name!r}; known keys are {', '.join(known)}")
    for name, f in known.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"the key {name!r} is missing")
    return kind(**{name: _convert(name, hints[name], value) for name, value in values.items()})


def _convert(name: str, hint: Any, value: Any) -> Any:
    """Convert a TOML value to a field's type: tables to dataclasses, arrays to tuples, integers to floats."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value)  # type: ignore[arg-type]
    if getattr(hint, "__origin__", None) is tuple:
        return _convert_array(name, hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is not hint:
        raise ValueError(f"{name} is {str(value)[:60]!r}; it must be of type {hint.__name__}")
    return value


def _convert_array(name: str, hint: Any, value: Any) -> tuple[Any, ...]:
    """Convert a TOML array to a tuple of the hint's types."""
    if not isinstance(value, list):
        raise ValueError(f"{name} is {str(value)[:60]!r}; it must be an array in square brackets")
    kinds = hint.__args__
    if Ellipsis in kinds:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise ValueError(f"{name} has {len(value)} values; it must have {len(kinds)}")
    return tuple(_convert(name, kind, item) for kind, item in zip(kinds, value, strict=True))
