"""Options that several commands share, and how they are checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffbody_ref.ops.devices import check_device

if TYPE_CHECKING:
    from diffbody_ref.ops.options import RestoreOptions


def number(help: str) -> Any:
    """An option whose default is the model's."""
    return typer.Option(help=f"{help} Default: the model's.", show_default=False)


Model = Annotated[str, typer.Option(help="`nano`, which is built in, or a folder with a model_index.json.")]
Steps = Annotated[
    int, typer.Option(help="Denoising steps, 1 to 1000. Fewer are faster; below 20 take --sampler dpm++.")
]
Guidance = Annotated[
    float | None, number("Classifier-free guidance by the prompt, from 0; 1 is off and twice as fast.")
]
BodyGuidance = Annotated[float | None, number("Strength of body-part guidance (eq. 6), from 0; 0 is off and faster.")]
Strength = Annotated[
    float | None, number("Above 0, to 1: from noise. Less starts from, and stays near, the regression.")
]
Sampler = Annotated[str, typer.Option(help="`ddpm` (the paper's), `ddim` or `dpm++`.")]
Colour = Annotated[str, typer.Option(help="Colours after the regression result: `wavelet`, `adain` or `none`.")]
Residual = Annotated[
    bool | None,
    typer.Option(
        "--residual/--no-residual",
        help="Keep what the autoencoder loses of the regression result. Default: the model's.",
        show_default=False,
    ),
]
Device = Annotated[
    str, typer.Option(help="`auto` (a CUDA GPU if there is one and the engine can use it), `cpu` or `cuda`.")
]
Precision = Annotated[str, typer.Option(help="What a bundle's graphs calculate in: `float32`, `float16`, `bfloat16`.")]
ServedBundle = Annotated[
    Path | None,
    typer.Option(help="A folder that `diffbody export` made. Default: nano's, which is built in.", show_default=False),
]


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None: the others stay the model's or the class's own."""
    return {name: value for name, value in values.items() if value is not None}


def check_options(settings: dict[str, Any], seed: int, device: str) -> RestoreOptions:
    """What can be checked without a model is checked before one is loaded; messages name the flags.

    Raises:
        ValueError: a value out of its range.
    """
    from diffbody_ref.ops.noise import check_seed
    from diffbody_ref.ops.options import RestoreOptions

    check_seed(seed, "--seed")
    check_device(device, "--device")
    flags = {name: f"--{name.replace('_', '-')}" for name in settings} | {"num_inference_steps": "--steps"}
    try:
        return RestoreOptions(**settings)
    except ValueError as error:
        names = "|".join(sorted(flags, key=len, reverse=True))
        raise ValueError(re.sub(rf"\b({names})\b", lambda found: flags[found[0]], str(error), count=1)) from None
