"""Options of several commands: their help, their panels, their choices, and what becomes of them."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from diffbody_ref.ops.colour import COLOUR_METHODS
from diffbody_ref.ops.devices import DEVICES, PRECISIONS
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.samplers import SAMPLERS
from runtime.engines.config import ENGINES, GUIDANCE_ENGINES, EngineConfig

THE_MODELS = "the model's"  # default of options whose value a model brings
BUILT_IN = "nano, which is built in"  # default of options that name a model


def panel(title: str) -> Callable[..., Any]:
    """A maker of options that `--help` shows in the panel of that title."""

    def option(help: str, *names: str, **details: Any) -> Any:
        return typer.Option(*names, help=help, rich_help_panel=title, **details)

    return option


file_option = panel("Input and output")
quality_option = panel("Quality")
engine_option = panel("Speed and engine")
server_option = panel("Server")
report_option = panel("What is said")

FLAG: dict[str, Any] = {"metavar": ""}  # without it, help shows <bool>


def one_of(literal: Any) -> dict[str, Any]:
    """How help shows the choices of a `Literal`: with spaces, so that a narrow terminal breaks lines between them."""
    return {"metavar": f"<{' | '.join(get_args(literal))}>"}


if TYPE_CHECKING:  # choices are read from the tables of what there is, which a type checker does not follow
    DeviceName = str
    SamplerName = str
    ColourName = str
    EngineName = str
    GuidanceName = str
    PrecisionName = str
    Precisions = str
else:
    DeviceName = Literal[tuple(DEVICES)]
    SamplerName = Literal[tuple(SAMPLERS)]
    ColourName = Literal[tuple(COLOUR_METHODS)]
    EngineName = Literal[tuple(ENGINES)]
    GuidanceName = Literal[tuple(GUIDANCE_ENGINES)]
    PrecisionName = Literal[tuple(PRECISIONS)]
    Precisions = StrEnum("Precisions", [(name, name) for name in PRECISIONS])  # lists take no Literal

FormatName = Literal["png", "jpg", "webp", "avif", "tif"]  # `ops.formats.OUTPUT_FORMATS`, which imports Pillow

Model = Annotated[str, file_option("Model: `nano`, which is built in, or a folder with a model_index.json.")]
Bundle = Annotated[
    Path | None,
    file_option("Bundle: a folder that `diffbody export` made.", metavar="FOLDER", show_default=BUILT_IN),
]
Device = Annotated[
    DeviceName,
    engine_option(
        "Device to compute on. `auto` takes a CUDA GPU where there is one that the engine can use.",
        **one_of(DeviceName),
    ),
]
Precision = Annotated[
    PrecisionName, engine_option("Number format that a bundle's graphs compute in.", **one_of(PrecisionName))
]
WeightFormat = Annotated[
    PrecisionName | None,
    engine_option(
        "Number format in which --model keeps its weights. Half precision takes half the memory; a CPU without such "
        "arithmetic computes in float32 all the same.",
        show_default="float32; float16 with --low-memory",
        **one_of(PrecisionName),
    ),
]


@dataclass(frozen=True)
class OutputOptions:
    """How outputs are written.

    Attributes:
        format: of outputs that are not named, one of `diffbody_ref.ops.formats.OUTPUT_FORMATS`; None is png.
        quality: of formats that are not lossless, 1 to 100; None is the format's own.
        strip_metadata: leave out the input's metadata.
        overwrite: do again what is done already, and replace files that are in the way.
    """

    format: str | None
    quality: int | None
    strip_metadata: bool
    overwrite: bool


@dataclass(frozen=True)
class Verbosity:
    """How much is said.

    Attributes:
        quiet: errors only.
        verbose: also what was skipped, how long each picture took and why it was restored again.
        as_json: a JSON object a picture on stdout, in place of lines.
    """

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False


def takes(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a group of options for each of the named parameters.

    `@takes(engines=engine_options)` puts the parameters of `engine_options` in the place of the command's parameter
    `engines`, and the command gets what `engine_options` makes of their values.
    """
    taken = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in own.parameters.items():
            parameters += taken[name].values() if name in groups else [parameter]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            made = {name: group(**{each: values.pop(each) for each in taken[name]}) for name, group in groups.items()}
            command(**values, **made)

        # typer reads both.
        run.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def restore_settings(
    steps: Annotated[
        int,
        quality_option("Number of denoising steps, 1 to 1000. Fewer are faster; below 20, choose --sampler dpm++."),
    ] = RestoreOptions.num_inference_steps,
    sampler: Annotated[
        SamplerName | None,
        quality_option(
            "Sampler that does the denoising steps. `ddpm` is the paper's, and nano's.",
            show_default=THE_MODELS,
            **one_of(SamplerName),
        ),
    ] = None,
    strength: Annotated[
        float | None,
        quality_option(
            "Share of noise to start from, above 0 and at most 1, which is noise alone. The lower it is, the nearer "
            "the result stays to the regression result.",
            show_default=THE_MODELS,
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        quality_option(
            "Scale of classifier-free guidance, from 0: how closely the result follows the prompt. 1 turns it off, "
            "which is twice as fast.",
            show_default=THE_MODELS,
        ),
    ] = None,
    body_guidance_scale: Annotated[
        float | None,
        quality_option(
            "Scale of body guidance (equation 6), from 0: how closely body parts keep the features of the regression "
            "result. 0 turns it off, which is faster.",
            show_default=THE_MODELS,
        ),
    ] = None,
    colour_fix: Annotated[
        ColourName,
        quality_option("Method that gives the result the colours of the regression result.", **one_of(ColourName)),
    ] = RestoreOptions.colour_fix,
    residual: Annotated[
        bool,
        quality_option(
            "Adds to the result what the autoencoder loses of the regression result. Nano does so by itself.",
            "--residual",
            **FLAG,
        ),
    ] = False,
    no_residual: Annotated[
        bool, quality_option("Leaves out what --residual adds, as the paper does.", "--no-residual", **FLAG)
    ] = False,
) -> dict[str, Any]:
    """Attributes of `RestoreOptions` that were asked for."""
    if residual and no_residual:
        raise ValueError("--residual and --no-residual: give one of them")
    return without_none(
        num_inference_steps=steps,
        sampler=sampler,
        strength=strength,
        guidance_scale=guidance_scale,
        body_guidance_scale=body_guidance_scale,
        colour_fix=colour_fix,
        use_residual=residual if residual or no_residual else None,
    )


def engine_config(
    device: Device = EngineConfig.device,
    engine: Annotated[
        EngineName, engine_option("Engine that runs the stages of a bundle.", **one_of(EngineName))
    ] = EngineConfig.engine,
    body_guidance_engine: Annotated[
        GuidanceName,
        engine_option(
            "Runs a bundle's body guidance: `engine` as its other stages, or `torch` on PyTorch.",
            **one_of(GuidanceName),
        ),
    ] = EngineConfig.guidance,
    precision: Precision = EngineConfig.precision,
    low_memory: Annotated[
        bool,
        engine_option(
            "Keeps no more than one large network in memory at a time, which is slower. With --model, sd21's size fits "
            "8 GB.",
            "--low-memory",
            **FLAG,
        ),
    ] = EngineConfig.low_memory,
) -> EngineConfig:
    """What runs a bundle."""
    return EngineConfig(engine, body_guidance_engine, device, low_memory=low_memory, precision=precision)


def output_options(
    format: Annotated[
        FormatName | None,
        # Beside the choices themselves, as other options have them, nothing else would fit into 80 columns.
        file_option(
            f"File format of the outputs that -o does not name: {', '.join(get_args(FormatName))}.",
            metavar="FORMAT",
            show_default="png",
        ),
    ] = None,
    quality: Annotated[
        int | None,
        file_option(
            "Quality of jpg, webp and avif, 1 to 100.", metavar="<int>", min=1, max=100, show_default="95 or 90"
        ),
    ] = None,
    strip_metadata: Annotated[
        bool,
        file_option(
            "Leaves out the input's metadata, such as when and where it was taken.", "--strip-metadata", **FLAG
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        file_option(
            "Restores again what is done already, and replaces files of the outputs' names.", "--overwrite", **FLAG
        ),
    ] = False,
) -> OutputOptions:
    """How outputs are written."""
    return OutputOptions(format, quality, strip_metadata, overwrite)


def verbosity(
    as_json: Annotated[
        bool,
        report_option(
            "Prints a JSON object a picture to stdout: source, status, output, side_pictures, seconds, notices, error, "
            "reason.",
            "--json",
            **FLAG,
        ),
    ] = False,
    quiet: Annotated[bool, report_option("Prints errors only.", "--quiet", "-q", **FLAG)] = False,
    verbose: Annotated[
        bool,
        report_option(
            "Also tells what is skipped, what is restored again and why, and the time.", "--verbose", "-v", **FLAG
        ),
    ] = False,
) -> Verbosity:
    """How much is said."""
    if quiet and verbose:
        raise ValueError("--quiet and --verbose: give one of them")
    return Verbosity(quiet, verbose, as_json)


def without_none(**values: Any) -> dict[str, Any]:
    """The values that are not None: the others stay the model's or the class's own."""
    return {name: value for name, value in values.items() if value is not None}


def working_size(size: str | None) -> dict[str, int]:
    """`height` and `width` of `RestoreOptions` that --size asks for.

    Raises:
        ValueError: it is neither HEIGHTxWIDTH nor a number.
    """
    if size is None:
        return {}
    match = re.fullmatch(r"\s*(\d{1,6})(?:\s*[x×*]\s*(\d{1,6}))?\s*", size, re.IGNORECASE)
    if match is None:
        raise ValueError(f"--size {size!r}: give HEIGHTxWIDTH in pixels, such as 1024x512, or one number, such as 512")
    return {"height": int(match[1]), "width": int(match[2] or match[1])}


def check_options(settings: dict[str, Any], seed: int) -> None:
    """What can be checked without a model is checked before one is loaded; messages name the flags.

    Raises:
        ValueError: a value out of its range.
    """
    from diffbody_ref.ops.noise import check_seed

    check_seed(seed, "--seed")
    with flags_for(*settings, num_inference_steps="--steps", height="--size: height", width="--size: width"):
        RestoreOptions(**settings)


@contextmanager
def flags_for(*fields: str, **flags: str) -> Iterator[None]:
    """Errors of a configuration name its fields; whoever typed a command is told of the flags.

    Args:
        fields: whose flag is the field's name with dashes.
        flags: flags of fields that are called differently.
    """
    flags = {field: f"--{field.replace('_', '-')}" for field in fields} | flags
    try:
        yield
    except ValueError as error:
        names = "|".join(sorted(flags, key=len, reverse=True))
        raise ValueError(re.sub(rf"\b({names})\b", lambda found: flags[found[0]], str(error), count=1)) from None
