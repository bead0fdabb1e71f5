"""The command line, put together of the commands in this folder."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from diffbody.cli import bundles, data, evaluation, restore, serving, training
from diffbody.cli.console import user_errors
from diffbody_ref import __version__

app = typer.Typer(
    name="diffbody",
    help="Restore degraded pictures of people with a diffusion model that knows the human body.",
    epilog="`diffbody COMMAND --help` explains a command with examples. DIFFBODY_DEBUG=1 shows tracebacks of errors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; the exit code is 0, 2 for bad input, 130 when interrupted."""
    with user_errors():
        sys.exit(app(arguments, prog_name="diffbody", standalone_mode=False) or 0)


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


app.command(no_args_is_help=True)(restore.restore)
app.command(no_args_is_help=True)(training.train)
app.command("train-all", no_args_is_help=True)(training.train_all)
app.command("import", no_args_is_help=True)(training.import_checkpoints)
app.command(no_args_is_help=True)(training.release)
app.command(no_args_is_help=True)(data.synth)
app.command(no_args_is_help=True)(data.clean)
app.command(no_args_is_help=True)(data.caption)
app.command(no_args_is_help=True)(evaluation.evaluate)
app.command()(bundles.export)
app.command(no_args_is_help=True)(bundles.plan)
app.command(no_args_is_help=True)(bundles.parity)
app.command("triton-repo", no_args_is_help=True)(serving.triton_repo)
app.command()(serving.serve)
