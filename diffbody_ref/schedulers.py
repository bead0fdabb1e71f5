"""diffusers' schedulers: which of the method's samplers each stands for, and which cannot be honoured.

The method samples by `ops.samplers` wherever it runs. So a pipeline's scheduler is read and not called: its class
chooses the sampler of calls that name none, and its configuration must say what the samplers do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from diffbody_ref.ops.samplers import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS

SCHEDULERS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler)
}

# What every one of them must say; a setting that a scheduler does not have is passed over.
NOISE: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (NUM_TRAIN_TIMESTEPS,),
    "beta_start": (BETA_START,),
    "beta_end": (BETA_END,),
    "beta_schedule": ("scaled_linear",),
    "trained_betas": (None,),
    "prediction_type": ("epsilon",),
    "rescale_betas_zero_snr": (False,),
    "clip_sample": (False,),
    "thresholding": (False,),
    "variance_type": ("fixed_small", None),
}
# Of no effect with the settings above. Samplers choose their timesteps by themselves ("leading" with its offset is what
# Stable Diffusion's configuration says, from which others are made).
WITHOUT_EFFECT = (
    "clip_sample_range",
    "sample_max_value",
    "dynamic_thresholding_ratio",
    "steps_offset",
    "flow_shift",
    "time_shift_type",
    "lower_order_final",  # a last step to z_0 is of order 1 in any case
    "euler_at_final",
)
SPACING = {
    "DDPMScheduler": ("leading", "linspace"),
    "DDIMScheduler": ("leading", "trailing"),
    "DPMSolverMultistepScheduler": ("leading", "trailing"),
}
SOLVER_ORDERS = {1: "ddim", 2: "dpm++"}


def sampler_of(scheduler: Any) -> str:
    """The sampler in `ops.samplers.SAMPLERS` that a diffusers scheduler stands for.

    Raises:
        ValueError: no sampler does what the scheduler does; names its class, or the setting and what it may be.
    """
    name = type(scheduler).__name__
    if name not in SCHEDULERS:
        raise ValueError(f"the scheduler {name} is not supported; it may be {', '.join(SCHEDULERS)}")
    allowed = {**NOISE, "timestep_spacing": SPACING[name], "solver_order": tuple(SOLVER_ORDERS)}
    usual = SCHEDULERS[name]().config
    for setting, value in scheduler.config.items():
        if setting.startswith("_") or setting in WITHOUT_EFFECT:
            continue
        may_be = allowed.get(setting, (usual.get(setting),))
        if value not in may_be:
            raise ValueError(
                f"the scheduler's {setting} is {value!r}; DiffBody supports {' or '.join(map(repr, may_be))} "
                f"(make it with {name}.from_config(pipe.scheduler.config, {setting}={may_be[0]!r}))"
            )
    if name == "DPMSolverMultistepScheduler":
        return SOLVER_ORDERS[scheduler.config.solver_order]
    return {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}[name]


def load_scheduler(folder: Path) -> SchedulerMixin:
    """The scheduler that was saved in a folder, of the class that its configuration names.

    Raises:
        ValueError: it is none of `SCHEDULERS`, or the configuration cannot be read.
    """
    path = folder / "scheduler_config.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: no scheduler: {type(error).__name__} {error}") from None
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ValueError(f"{path}: the scheduler {name!r} is not supported; it may be {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name].from_pretrained(folder)
