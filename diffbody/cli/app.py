"""The command line, put together of the commands in this folder."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from diffbody.cli import bundles, data, evaluation, importing, restore, serving, training
from diffbody.cli.console import INTERRUPTED, plain_output, require, user_errors
from diffbody_ref import __version__

app = typer.Typer(
    name="diffbody",
    help="Restore degraded pictures of people with a diffusion model that knows the human body.",
    epilog="`diffbody COMMAND --help` explains a command with examples. DIFFBODY_DEBUG=1 shows tracebacks of errors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; the exit code is 0, 2 for bad input, 130 when interrupted."""
    plain_output()
    with user_errors():
        code = app(arguments, prog_name="diffbody", standalone_mode=False) or 0
        if code == INTERRUPTED:
            print("diffbody: interrupted", file=sys.stderr)
        sys.exit(code)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"diffbody {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options before the command."""


def needing(*packages: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command begin only where packages are there, so that it does not stop half-way without them.

    Args:
        packages: what the command imports for all that it does, of extras.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            require(*packages)
            command(**values)

        return run

    return decorate


# First what only the largest extra brings, so that its name is told.
REFERENCE = ("torch", "diffusers", "transformers", "safetensors")
TRAINING = ("scipy", "matplotlib", "accelerate", *REFERENCE)
SYNTHESIS = ("anny", "warp", "scipy", "torch")
EVALUATION = ("skimage", "scipy", "matplotlib", *REFERENCE)

app.command(no_args_is_help=True)(restore.restore)
app.command(no_args_is_help=True)(needing(*TRAINING)(training.train))
app.command("train-all", no_args_is_help=True)(needing(*SYNTHESIS, *EVALUATION, *TRAINING)(training.train_all))
app.command("import", no_args_is_help=True)(needing(*REFERENCE)(importing.import_checkpoints))
app.command(no_args_is_help=True)(needing(*REFERENCE)(training.release))
app.command(no_args_is_help=True)(needing(*SYNTHESIS)(data.synth))
app.command(no_args_is_help=True)(data.clean)
app.command(no_args_is_help=True)(data.caption)
app.command(no_args_is_help=True)(needing(*EVALUATION)(evaluation.evaluate))
app.command()(needing("onnx", "onnxscript", *REFERENCE)(bundles.export))
app.command(no_args_is_help=True)(bundles.plan)
app.command(no_args_is_help=True)(needing(*REFERENCE)(bundles.parity))
app.command("triton-repo", no_args_is_help=True)(serving.triton_repo)
app.command()(needing("pytriton", "tritonclient")(serving.serve))
