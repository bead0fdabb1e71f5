"""diffusers' schedulers: which noise process and sampler each stands for, and which cannot be honoured.

The method samples by `ops.samplers` wherever it runs. So a pipeline's scheduler is read and not called: its
configuration says the noise process of the model (betas and prediction type), and its class chooses the sampler of
calls that name none. A setting that the samplers do not follow is refused by its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from diffbody_ref.ops.samplers import (
    BETA_SCHEDULES,
    NUM_TRAIN_TIMESTEPS,
    PREDICTIONS,
    NoiseProcess,
    alphas_cumprod,
    zero_terminal_snr,
)

SCHEDULERS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler)
}

# The settings that say the noise process, in every class.
NOISE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
# What every scheduler must say; a setting that a scheduler does not have is passed over.
MAY_BE: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (NUM_TRAIN_TIMESTEPS,),
    "beta_schedule": tuple(BETA_SCHEDULES),
    "prediction_type": tuple(PREDICTIONS),
    "rescale_betas_zero_snr": (False, True),
    "clip_sample": (False,),
    "thresholding": (False,),
    "variance_type": ("fixed_small", None),
}
# Checked by `noise_process_of`.
NUMBERS = ("beta_start", "beta_end", "trained_betas")
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
    "DDPMScheduler": ("leading", "linspace", "trailing"),
    "DDIMScheduler": ("leading", "trailing"),
    "DPMSolverMultistepScheduler": ("leading", "trailing"),
}
SOLVER_ORDERS = {1: "ddim", 2: "dpm++"}


def sampler_of(scheduler: Any) -> str:
    """The sampler in `ops.samplers.SAMPLERS` that a diffusers scheduler stands for.

    Raises:
        ValueError: no sampler does what the scheduler does; names its class, or the setting and what it may be. Also
            where `noise_process_of` raises: before anything is computed, all that is wrong is known.
    """
    noise_process_of(scheduler)
    name, config = type(scheduler).__name__, scheduler.config
    if name == "DPMSolverMultistepScheduler":
        return SOLVER_ORDERS[config.solver_order]
    if name == "DDPMScheduler":
        return "ddpm-trailing" if config.timestep_spacing == "trailing" else "ddpm"
    return "ddim"


def noise_process_of(scheduler: Any) -> NoiseProcess:
    """The noise process that a diffusers scheduler is configured for, in float64 (diffusers computes it in float32).

    Where a zero terminal SNR is asked for, ᾱ_999 is 0, as diffusers' DDPM and DDIM have it; its DPM-Solver has 2⁻²⁴.

    Raises:
        ValueError: a class or a setting that is not supported, betas that are none, or ε-prediction with a zero
            terminal SNR.
    """
    _check(scheduler)
    config = scheduler.config
    alphas = alphas_cumprod(_betas(config))
    if config.rescale_betas_zero_snr:
        alphas = zero_terminal_snr(alphas)
    try:
        return NoiseProcess(tuple(alphas.tolist()), config.prediction_type)
    except ValueError as error:
        raise ValueError(f"the scheduler: {error}") from None


def _check(scheduler: Any) -> None:
    name = type(scheduler).__name__
    if name not in SCHEDULERS:
        raise ValueError(f"the scheduler {name} is not supported; it may be {', '.join(SCHEDULERS)}")
    allowed = {**MAY_BE, "timestep_spacing": SPACING[name], "solver_order": tuple(SOLVER_ORDERS)}
    usual = SCHEDULERS[name]().config
    for setting, value in scheduler.config.items():
        if setting.startswith("_") or setting in WITHOUT_EFFECT or setting in NUMBERS:
            continue
        may_be = allowed.get(setting, (usual.get(setting),))
        if value not in may_be:
            # Another noise process is no remedy: it would be another model's.
            remedy = f" (make it with {name}.from_config(pipe.scheduler.config, {setting}={may_be[0]!r}))"
            raise ValueError(
                f"the scheduler's {setting} is {value!r}; DiffBody supports {' or '.join(map(repr, may_be))}"
                f"{'' if setting in NOISE else remedy}"
            )


def _betas(config: Any) -> np.ndarray:
    """β of every training step, float64 (1000,)."""
    if config.trained_betas is None:
        setting, between = "beta_start and beta_end", f"{config.beta_start!r} and {config.beta_end!r}"
        make = lambda: BETA_SCHEDULES[config.beta_schedule](config.beta_start, config.beta_end)  # noqa: E731
    else:
        setting, between = "trained_betas", f"{len(np.atleast_1d(config.trained_betas))} values"
        make = lambda: np.asarray(config.trained_betas, np.float64)  # noqa: E731
    try:
        betas = make()
    except (TypeError, ValueError):
        betas = np.empty(0)
    if betas.shape != (NUM_TRAIN_TIMESTEPS,) or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"the scheduler's {setting}: {between}; they must give {NUM_TRAIN_TIMESTEPS} numbers between 0 and 1"
        )
    return betas


def scheduler_for(config: Mapping[str, Any]) -> DDPMScheduler:
    """The method's own scheduler for the noise process of any diffusers scheduler's configuration.

    Checkpoints come with whatever scheduler their authors sampled by (PNDM, Euler): of it, only what the networks were
    trained for is kept.

    Args:
        config: what the file scheduler_config.json holds; what it leaves out is diffusers' default.

    Raises:
        ValueError: a noise process that is not supported; names the setting.
    """
    kept = {name: config[name] for name in NOISE if name in config}
    scheduler = DDPMScheduler(
        **kept,
        variance_type="fixed_small",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing" if kept.get("rescale_betas_zero_snr") else "leading",
    )
    noise_process_of(scheduler)
    return scheduler


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
