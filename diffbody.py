"""The `diffbody` command. What is slow to import (numpy, torch, diffusers) is imported by the command that needs it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from commands import data as data_commands
from commands import training as training_commands
from diffbody_ref import __version__
from diffbody_ref.loading import DEVICES, load_pipeline, model_folder
from diffbody_ref.weights import NANO_FOLDER
from runtime.console import progress_bar, progress_bars, report, user_errors
from runtime.triton.config import RepositoryConfig, ServerConfig

if TYPE_CHECKING:
    import numpy as np

    from diffbody_ref.ops.images import Picture
    from diffbody_ref.ops.options import RestoreOptions
    from diffbody_ref.ops.results import Intermediates
    from runtime.files import Restore


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


def _number(help: str) -> Any:
    """An option whose default is the model's."""
    return typer.Option(help=f"{help} Default: the model's.", show_default=False)


# Options that several commands share.
Model = Annotated[str, typer.Option(help="`nano`, which is built in, or a folder with a model_index.json.")]
Steps = Annotated[
    int, typer.Option(help="Denoising steps, 1 to 1000. Fewer are faster; below 20 take --sampler dpm++.")
]
Guidance = Annotated[
    float | None, _number("Classifier-free guidance by the prompt, from 0; 1 is off and twice as fast.")
]
BodyGuidance = Annotated[float | None, _number("Strength of body-part guidance (eq. 6), from 0; 0 is off and faster.")]
Strength = Annotated[
    float | None, _number("Above 0, to 1: from noise. Less starts from, and stays near, the regression.")
]
Sampler = Annotated[str, typer.Option(help="`ddpm` (the paper's), `ddim` or `dpm++`.")]
Colour = Annotated[str, typer.Option(help="Colours after the regression result: `wavelet`, `adain` or `none`.")]
Device = Annotated[str, typer.Option(help="`auto` (a CUDA GPU if there is one), `cpu` or `cuda`.")]
Precision = Annotated[str, typer.Option(help="What a bundle's graphs calculate in: `float32`, `float16`, `bfloat16`.")]


@app.command(no_args_is_help=True)
def restore(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="Pictures, or folders of pictures (png, jpg, webp, bmp, tiff)."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File (png, jpg, webp) for one picture, or a folder. Default: beside the input."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="A folder that `diffbody export` made. Default: nano's, which is built in.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="`nano`, or a folder with a model_index.json: restores with the PyTorch reference, not a bundle.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="A server's: `localhost:8001` (gRPC) or `http://localhost:8000`; it restores then. Give it again for "
            "several servers.",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The server's, with --url.", envvar="DIFFBODY_API_KEY", show_default=False)
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Pictures at a time, with --url.", min=1)] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a picture, with --url.")] = 600.0,
    prompt: Annotated[str, typer.Option(help="What the picture shows, from head to toe; may stay empty.")] = "",
    negative_prompt: Annotated[str, typer.Option(help="What the picture should not look like.")] = "",
    steps: Steps = 50,
    guidance_scale: Guidance = None,
    body_guidance_scale: BodyGuidance = None,
    body_guidance_every: Annotated[int, typer.Option(help="Body guidance at every k-th step only, from 1.")] = 1,
    strength: Strength = None,
    sampler: Sampler = "ddpm",
    colour_fix: Colour = "wavelet",
    upscale: Annotated[
        float | None,
        typer.Option(
            help="Output over input size, up to 16. Default: 1, but at least the model's area.", show_default=False
        ),
    ] = None,
    tile_size: Annotated[
        int | None, _number("Pixels, from 128. Larger pictures are done in tiles; small tiles need little memory.")
    ] = None,
    seed: Annotated[int, typer.Option(help="From 0. The same seed gives the same picture.")] = 0,
    device: Device = "auto",
    engine: Annotated[
        str, typer.Option(help="What runs a bundle's stages: `onnxruntime`, `tensorrt` or `torch`.")
    ] = "onnxruntime",
    guidance: Annotated[
        str, typer.Option(help="What runs a bundle's body guidance: `engine`, as the other stages, or `torch`.")
    ] = "engine",
    precision: Precision = "float32",
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Hold one stage of the bundle in memory at a time; slower.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also write NAME.restored_before_after.png.")] = False,
    intermediates: Annotated[
        bool,
        typer.Option(
            "--intermediates",
            help="Also write what the stages found: NAME.restored_{regression,pose,attention,loss}.png.",
        ),
    ] = False,
) -> None:
    """Restore pictures of people: photo.jpg becomes photo.restored.png.

    Of several pictures, one that fails does not stop the others, and what is restored already is skipped, so that an
    interrupted run can just be started again. The exit code is 2 if any failed.

    Examples:

    - `diffbody restore photo.jpg`

    - `diffbody restore photo.jpg -o better.png --upscale 2 --prompt "a woman with short brown hair, a red coat"`

    - `diffbody restore holidays/ -o restored/ --compare`

    - `diffbody restore photo.jpg --sampler dpm++ --steps 15 --body-guidance-every 3` (several times faster)

    - `diffbody restore holidays/ -o restored/ --url localhost:8001` (on a server that `diffbody serve` started)
    """
    from runtime import files
    from runtime.companions import INTERMEDIATES

    settings = given(
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        body_guidance_scale=body_guidance_scale,
        body_guidance_every=body_guidance_every,
        strength=strength,
        sampler=sampler,
        colour_fix=colour_fix,
        upscale=upscale,
        tile_size=tile_size,
    )
    check_options(settings, seed, device)
    if sum(given is not None for given in (model, bundle, url)) > 1:
        raise ValueError("--model, --bundle and --url: give one of them")
    if url and intermediates:
        raise ValueError("--intermediates: a server sends the restored picture only; restore here, without --url")
    how = {"engine": engine, "guidance": guidance, "low_memory": low_memory, "precision": precision}
    jobs = files.plan(inputs, out)
    companions = ("before_after",) * compare + INTERMEDIATES * intermediates
    single = len(inputs) == 1 and not inputs[0].is_dir()
    if single and not overwrite:
        files.check_absent([jobs[0].target, *(jobs[0].companion(name) for name in companions)])

    call = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed, **settings}
    folder = (bundle or NANO_FOLDER) if model is None else model_folder(model)
    with progress_bars() as bar:
        pictures = bar.add_task("pictures", total=len(jobs))
        step = bar.add_task("steps", total=steps)
        show_step = lambda i, n: bar.update(step, completed=i, total=n)  # noqa: E731

        def load() -> Restore:
            if url:
                return load_client(url, api_key, concurrency, timeout, call, show_step, compare)
            if model is None:
                return with_companions(load_bundle(folder, device, how, call, show_step), companions)
            return with_companions(load_reference(folder, device, call, show_step), companions)

        summary = files.run(
            jobs,
            load,
            overwrite=overwrite,
            companions=companions,
            progress=lambda i, job: bar.update(pictures, completed=i, description=job.source.name),
            workers=concurrency if url else 1,
        )
    report(summary, companions, single)


@app.command(no_args_is_help=True)
def train(
    stage: Annotated[
        str,
        typer.Argument(metavar="STAGE", help="`swinir`, `vae`, `pose`, `parts` or `diffusion`, as the file says too."),
    ],
    config: Annotated[
        Path, typer.Option(help="TOML file; diffbody_ref/training/configs holds nano's and the paper's.")
    ],
    stop_after: Annotated[
        int | None,
        typer.Option(help="Stop at this step with a checkpoint; the same command goes on.", show_default=False, min=1),
    ] = None,
) -> None:
    """Train one stage, from its newest checkpoint where there is one.

    The stages build on each other in this order: `swinir`, `vae`, `pose`, `parts`, `diffusion`. Trained networks are
    written to the pipeline folder that the file names; `diffbody restore --model FOLDER` uses it once all are there.

    Example:

    - `diffbody train swinir --config diffbody_ref/training/configs/nano/swinir.toml`
    """
    from diffbody_ref.training.config import load_config

    loaded = load_config(config)
    if loaded.stage != stage:
        raise ValueError(f"{config} configures the stage {loaded.stage!r}, not {stage!r}")
    from diffbody_ref.training.loop import train as train_stage

    folder = train_stage(loaded, stop_after)
    if os.environ.get("RANK", "0") == "0":  # one of a launcher's processes speaks
        print(f"trained {stage}: {folder}")


training_commands.register(app)


@app.command(no_args_is_help=True)
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the training set; made, or gone on with.")],
    identities: Annotated[int, typer.Option(help="How many people, from 1.")],
    views: Annotated[int, typer.Option(help="Pictures of each, from 1.")] = 4,
    seed: Annotated[int, typer.Option(help="From 0. The same seed gives the same pictures.")] = 0,
    height: Annotated[int, typer.Option(help="Pixels; 256 for nano, 1024 for the paper's size.")] = 256,
    width: Annotated[int, typer.Option(help="Pixels; 128 for nano, 512 for the paper's size.")] = 128,
    first_identity: Annotated[int, typer.Option(help="Number of the first person; other numbers, other people.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Render synthetic people with ground truth: keypoints, part masks, identity, caption. Nothing is downloaded.

    An interrupted run goes on where it stopped.

    Examples:

    - `diffbody synth data/train --identities 2000`

    - `diffbody synth data/held-out --identities 50 --first-identity 100000` (people who are not in the first one)
    """
    from diffbody_ref.data.synthetic.dataset import synthesize

    with progress_bar("pictures") as show:
        done = synthesize(out, identities, views, seed, height, width, first_identity, workers, show)
    rate = f" in {done.seconds:.1f} s, {done.pictures_per_second:.2f} pictures/s" if done.rendered else ""
    print(f"{out}: {done.pictures} pictures, {done.rendered} rendered now{rate}")


@app.command(no_args_is_help=True)
def release(
    components: Annotated[Path, typer.Argument(metavar="COMPONENTS", help="The training runs' pipeline folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the model; one that is there is replaced.")],
    preset: Annotated[str, typer.Option(help="`nano` or `sd21`: base size and default settings.")] = "nano",
    runs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the training runs: draws their loss curves to OUT/losses.png.", show_default=False
        ),
    ] = None,
) -> None:
    """Make a model folder from trained components, in half precision: what `restore --model OUT` takes.

    Example:

    - `diffbody release runs/nano/pipeline models/mine --runs runs/nano`
    """
    from diffbody_ref.release import release as release_model

    print(f"released {release_model(components, out, preset, runs)}")


data_commands.register(app)


@app.command()
def export(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the bundle; one that is there is replaced when it is done.")
    ],
    model: Model = "nano",
    precision: Annotated[
        list[str],
        typer.Option(help="Of the graphs: `float32`, `float16` or `bfloat16`; give it again for several."),
    ] = ["float32"],  # noqa: B006, typer copies it
) -> None:
    """Turn a model into a bundle: an ONNX graph of each stage, which `restore --bundle` runs without PyTorch.

    An interrupted export goes on where it stopped.

    Examples:

    - `diffbody export --model models/mine -o bundles/mine`

    - `diffbody export -o bundles/nano --precision float32 --precision float16`
    """
    folder = model_folder(model)
    from export.bundle import export_bundle

    with progress_bar("stages") as show:
        export_bundle(folder, out, tuple(precision), show)
    print(f"exported {out}")


@app.command(no_args_is_help=True)
def plan(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `diffbody export` made.")],
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the GPU, such as 8.9; TensorRT-RTX takes several. Default: this machine's.", show_default=False
        ),
    ] = None,
    precision: Precision = "float32",
    tensorrt_flavour: Annotated[
        str | None, typer.Option(help="`tensorrt` or `tensorrt_rtx`. Default: what is installed.", show_default=False)
    ] = None,
) -> None:
    """Build TensorRT plans of a bundle's graphs into it, for `restore --engine tensorrt`.

    A plan runs on the GPUs and the version of TensorRT that it was built for. TensorRT-RTX builds for GPUs that are
    not in this machine.

    Examples:

    - `diffbody plan bundles/nano --precision float16`

    - `diffbody plan bundles/nano --compute-capability 8.6 --compute-capability 12.0`
    """
    from export.tensorrt import add_plans
    from runtime.bundle import PlanTarget
    from runtime.engines.cuda import compute_capability as this_machines
    from runtime.engines.tensorrt import import_tensorrt, installed_flavour

    flavour = tensorrt_flavour or installed_flavour()
    version = import_tensorrt(flavour).__version__
    capabilities = compute_capability or [capability for capability in [this_machines()] if capability]
    if not capabilities:
        raise ValueError("there is no GPU here to build for; name one by --compute-capability")
    with progress_bar("stages") as show:
        print(f"built {add_plans(bundle, PlanTarget(flavour, version, tuple(capabilities), precision), show)}")


@app.command(no_args_is_help=True)
def parity(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `diffbody export` made.")],
    model: Model = "nano",
    precision: Precision = "float32",
) -> None:
    """Compare a bundle's stages, and a restoration, with the PyTorch reference; `export` does so as well.

    The exit code is 2 if a stage is beyond its tolerance.

    Example:

    - `diffbody parity bundles/mine --model models/mine`
    """
    folder = model_folder(model)
    from export.parity import parity as compare
    from runtime.bundle import Bundle

    with progress_bar("stages") as show:
        report = compare(load_pipeline(folder, "cpu"), Bundle.open(bundle), precision, progress=show)
    print(report.as_markdown())
    if report.failures:
        raise ValueError(f"{bundle}: {len(report.failures)} beyond tolerance: {report.failures[0]}")


# What is served, and how; shared by the commands that make a model repository.
ServedBundle = Annotated[
    Path | None,
    typer.Option(help="A folder that `diffbody export` made. Default: nano's, which is built in.", show_default=False),
]
Profile = Annotated[str, typer.Option(help="`cpu` (ONNX Runtime) or `gpu` (TensorRT plans).")]
Threads = Annotated[int, typer.Option(help="Of an operator on the CPU; 0 is all cores.")]
ServedGuidance = Annotated[
    str | None,
    typer.Option(help="What runs body guidance: `engine` or `torch`. Default: torch on a GPU.", show_default=False),
]
InFlight = Annotated[int, typer.Option(help="Requests sampled at a time; to more, the answer is: unavailable, retry.")]
Queue = Annotated[int, typer.Option(help="Requests that wait for one model; to more, the same.")]
MaxPixels = Annotated[int, typer.Option(help="Of a picture at work, from its upscaling or padding.")]
MaxSeconds = Annotated[float, typer.Option(help="After which a request is given up.")]


@app.command("triton-repo", no_args_is_help=True)
def triton_repo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model repository; one there is replaced.")],
    bundle: ServedBundle = None,
    profile: Profile = "cpu",
    precision: Precision = "float32",
    guidance: ServedGuidance = None,
    threads: Threads = 0,
    max_in_flight: InFlight = RepositoryConfig.max_in_flight,
    max_queue: Queue = RepositoryConfig.max_queue,
    max_pixels: MaxPixels = RepositoryConfig.max_pixels,
    max_seconds: MaxSeconds = RepositoryConfig.max_seconds,
) -> None:
    """Write the model repository that Triton Inference Server runs, for a server of your own.

    Example:

    - `diffbody triton-repo --bundle bundles/mine --profile gpu --precision float16 -o models`
    """
    from runtime.triton.repository import render

    asked = given(guidance=guidance)
    config = RepositoryConfig(
        bundle or NANO_FOLDER,
        profile,
        precision,
        threads=threads,
        max_in_flight=max_in_flight,
        max_queue=max_queue,
        max_pixels=max_pixels,
        max_seconds=max_seconds,
        **asked,
    )
    print(f"wrote {render(config, out)}")


@app.command()
def serve(
    bundle: ServedBundle = None,
    profile: Profile = "cpu",
    precision: Precision = "float32",
    guidance: ServedGuidance = None,
    threads: Threads = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is reached from here only.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0 takes a free one, as for the others.")] = ServerConfig.http_port,
    grpc_port: Annotated[int, typer.Option(help="What --url of `restore` takes.")] = ServerConfig.grpc_port,
    metrics_port: Annotated[int, typer.Option(help="Of Prometheus's metrics.")] = ServerConfig.metrics_port,
    api_key: Annotated[
        str | None,
        typer.Option(help="Clients must send it. Better as variable.", envvar="DIFFBODY_API_KEY", show_default=False),
    ] = None,
    max_in_flight: InFlight = RepositoryConfig.max_in_flight,
    max_queue: Queue = RepositoryConfig.max_queue,
    max_pixels: MaxPixels = RepositoryConfig.max_pixels,
    max_seconds: MaxSeconds = RepositoryConfig.max_seconds,
    trace: Annotated[Path | None, typer.Option(help="File for Triton's traces.", show_default=False)] = None,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Triton's log; twice for more.")] = 0,
) -> None:
    """Serve a bundle with Triton Inference Server, until Ctrl-C.

    Examples:

    - `diffbody serve`, and in another terminal `diffbody restore photo.jpg --url localhost:8001`

    - `diffbody serve --bundle bundles/mine --host 0.0.0.0 --api-key SECRET`
    """
    import tempfile

    from runtime.triton.repository import render
    from runtime.triton.server import run_until_stopped

    limits = {"max_in_flight": max_in_flight, "max_queue": max_queue, "max_pixels": max_pixels}
    asked = given(guidance=guidance, max_seconds=max_seconds, threads=threads, **limits)
    with tempfile.TemporaryDirectory(prefix="diffbody-models-") as folder:
        repository = render(
            RepositoryConfig(bundle or NANO_FOLDER, profile, precision, **asked), Path(folder) / "models"
        )
        ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
        config = ServerConfig(repository, host, **ports, api_key=api_key, trace=trace, verbose=max(0, verbose - 1))
        run_until_stopped(config, show_log=log_line if verbose else log_warning)


def log_line(severity: str, line: str) -> None:
    """A line of the server's log, on stderr."""
    print(f"{severity:7s} {line}", file=sys.stderr)


def log_warning(severity: str, line: str) -> None:
    """The same, of warnings and errors."""
    if severity != "info":
        log_line(severity, line)


bench_commands = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode="markdown")
app.add_typer(bench_commands, name="bench")


@bench_commands.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="A bundle of the model, exported first if it is not there. Default: the model's folder, if it is one.",
            show_default=False,
        ),
    ] = None,
    model: Model = "nano",
    sample: Annotated[Path, typer.Option(help="Picture to restore.")] = Path("samples/degraded/astronaut.jpg"),
    steps: Steps = 50,
    rounds: Annotated[int, typer.Option(help="Rounds after the warm-up.", min=1)] = 5,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for engines-cpu.json, engines-cpu.png, stages-cpu.png.")
    ] = Path("benchmarks/results"),
) -> None:
    """Time a restoration on every engine, side by side, and show where the time goes; `serve` times the server.

    Example:

    - `diffbody bench --steps 20 --rounds 3 -o out/bench`
    """
    if context.invoked_subcommand is not None:
        return
    folder = model_folder(model)
    from benchmarks.engines import report as report_engines
    from benchmarks.engines import run
    from runtime.bundle import MANIFEST

    if bundle is None:
        bundle = folder if (folder / MANIFEST).is_file() else Path("out/bundle")
    if not bundle.exists():
        export(bundle, model, ["float32"])
    with progress_bar("restorations") as show:
        report_engines(run(folder, bundle, sample, steps, rounds, out, show))


@bench_commands.command("serve")
def bench_serve(
    bundle: ServedBundle = None,
    sample: Annotated[Path, typer.Option(help="Picture to restore.")] = Path("samples/degraded/synthetic_1.jpg"),
    rounds: Annotated[int, typer.Option(help="Rounds of in-process against server, after the warm-up.", min=1)] = 5,
    pictures: Annotated[int, typer.Option(help="Of each load.", min=8)] = 24,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for serving-cpu.json and serving-cpu.png.")] = Path(
        "benchmarks/results"
    ),
) -> None:
    """Time the server against in-process, and at 1 to 8 clients with and without batching in flight.

    Example:

    - `diffbody bench serve --pictures 16 -o out/bench`
    """
    from benchmarks.serving import run

    with progress_bar("restorations") as show:
        for path in run(bundle or NANO_FOLDER, sample, rounds, pictures, out, show):
            print(path)


@app.command(no_args_is_help=True)
def evaluate(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA", help="Folders that `diffbody synth` wrote, not used to train; or of sharp photographs."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.md, table.csv, report.json, grid.png and figures.")
    ],
    model: Model = "nano",
    suite: Annotated[
        str,
        typer.Option(
            help="`stages`: what each stage adds; `paper`: table 1 and figures 7 to 9; `structure`: keypoints, parts "
            "and identity found (needs labels)."
        ),
    ] = "stages",
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method, instead of the suite's; give it again for several.", show_default=False),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Pictures, drawn at random; a larger count continues. Default: all.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw, the degradations and the noise.")] = 0,
    degradation: Annotated[str, typer.Option(help="`nano` (for 256x128) or `paper` (for 1024x512).")] = "nano",
    longest_side: Annotated[
        int | None,
        typer.Option(help="Pixels: larger pictures are shrunk to it first.", show_default=False, min=32),
    ] = None,
    steps: Steps = 50,
    guidance_scale: Guidance = None,
    body_guidance_scale: BodyGuidance = None,
    strength: Strength = None,
    sampler: Sampler = "ddpm",
    colour_fix: Colour = "wavelet",
    captions: Annotated[bool, typer.Option(help="Use each picture's caption as its prompt.")] = True,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.")] = 1,
    grid_rows: Annotated[int, typer.Option(help="Pictures that grid.png shows.")] = 8,
    device: Device = "auto",
) -> None:
    """Measure how well a model restores people it was not trained on, beside other methods and without its own parts.

    Each picture is degraded by a seeded draw, restored by every method and compared with the original. Results are
    kept picture by picture and method by method, so an interrupted run can just be started again. Methods and metrics
    that are not installed are left out, and the report says so.

    Examples:

    - `diffbody synth data/held-out --identities 50 --first-identity 100000`

    - `diffbody evaluate data/held-out -o out/paper --suite paper --count 100`

    - `diffbody evaluate data/held-out -o out/structure --suite structure`

    - `diffbody evaluate samples/clean -o out/photos --suite paper --longest-side 256`
    """
    settings = given(
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        body_guidance_scale=body_guidance_scale,
        strength=strength,
        sampler=sampler,
        colour_fix=colour_fix,
    )
    check_options(settings, seed, device)
    folder = model_folder(model)
    from diffbody_ref.evaluation.subjects import Subjects

    subjects = Subjects(data, longest_side)
    from diffbody_ref.evaluation.run import EvaluateConfig
    from diffbody_ref.evaluation.run import evaluate as evaluate_pipeline

    config = EvaluateConfig(
        suite=suite,
        methods=tuple(method) if method else None,
        count=count,
        seed=seed,
        degradation=degradation,
        use_captions=captions,
        batch_size=batch_size,
        grid_rows=grid_rows,
        **settings,
    )
    with progress_bar("restorations") as show:
        evaluate_pipeline(
            load_pipeline(folder, device),
            subjects,
            config,
            out,
            lambda done, total, at_work: show(done, total, at_work or "restorations"),
        )
    print(out / "report.md")


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
    if device not in DEVICES:
        raise ValueError(f"unknown --device {device!r}, choose one of {', '.join(DEVICES)}")
    flags = {name: f"--{name.replace('_', '-')}" for name in settings} | {"num_inference_steps": "--steps"}
    try:
        return RestoreOptions(**settings)
    except ValueError as error:
        names = "|".join(sorted(flags, key=len, reverse=True))
        raise ValueError(re.sub(rf"\b({names})\b", lambda found: flags[found[0]], str(error), count=1)) from None


Run = Callable[["Picture"], tuple["np.ndarray", "Intermediates", list[str]]]
"""A picture → the restored pixels, what was found on the way, notices."""


def load_reference(folder: Path, device: str, call: dict[str, Any], on_step: Callable[[int, int], None]) -> Run:
    """Restoring with the PyTorch pipeline in `folder`.

    Args:
        call: keyword arguments of the pipeline.
        on_step: called with (steps done, steps in all).
    """
    from diffbody_ref.ops.schedule import steps_to_run

    pipeline = load_pipeline(folder, device)
    steps = steps_to_run(call["num_inference_steps"], call.get("strength", pipeline.config.strength))

    def run(picture: Picture) -> tuple[np.ndarray, Intermediates, list[str]]:
        on_step(0, steps)
        result = pipeline(
            picture,
            **call,
            output_type="np",
            return_intermediates=True,
            callback_on_step_end=lambda pipe, step, timestep, tensors: on_step(step + 1, steps),
        )
        return result.images[0], result.intermediates[0], result.notices[0]

    return run


def load_bundle(
    folder: Path, device: str, how: dict[str, Any], call: dict[str, Any], on_step: Callable[[int, int], None]
) -> Run:
    """Restoring with the bundle in `folder`; other arguments as for `load_reference`.

    Args:
        how: keyword arguments of `runtime.bundle.Bundle.restorer`.
    """
    from runtime.bundle import Bundle

    restorer = Bundle.open(folder).restorer(device=device, **how)

    def run(picture: Picture) -> tuple[np.ndarray, Intermediates, list[str]]:
        on_step(0, 1)
        result = restorer.restore(picture, **call, callback=lambda done: on_step(done.step + 1, done.num_steps))
        return result.pixels, result.found, result.notices

    return run


def load_client(
    urls: list[str],
    api_key: str | None,
    concurrency: int,
    timeout: float,
    call: dict[str, Any],
    on_step: Callable[[int, int], None],
    compare: bool,
) -> Restore:
    """Restoring on servers; arguments as those of `runtime.triton.client.ClientConfig` and for `load_reference`."""
    from runtime.companions import before_after
    from runtime.files import Job, Restored
    from runtime.triton.client import Client, ClientConfig, UnavailableError

    client = Client(ClientConfig(tuple(urls), timeout, concurrency=concurrency, api_key=api_key))
    if not client.is_ready():
        raise UnavailableError(f"{', '.join(urls)}: no server answers; start one with `diffbody serve`")
    grpc = not any(url.startswith("http://") for url in urls)

    def restore_one(picture: Picture, job: Job) -> Restored:
        # The file as it is: the server reads it as we do.
        watch = (lambda done: on_step(done.step, done.steps)) if grpc else None
        answer = client.restore(job.source, **call, on_progress=watch)
        made = {"before_after": before_after(picture.pixels, answer.picture.pixels)} if compare else {}
        return Restored(answer.picture, made, answer.report.notices)

    return restore_one


def with_companions(run: Run, companions: tuple[str, ...]) -> Restore:
    """A function that restores one picture and draws what goes beside it, for `runtime.files.run`.

    Args:
        companions: see `runtime.companions.draw`.
    """
    import numpy as np

    from diffbody_ref.ops.images import Picture, resize
    from runtime.companions import draw
    from runtime.files import Job, Restored

    def restore_one(picture: Picture, job: Job) -> Restored:
        pixels, found, notices = run(picture)
        made = draw(companions, picture.pixels, pixels, found)
        alpha = (
            None
            if picture.alpha is None
            else np.clip(resize(picture.alpha, pixels.shape[0], pixels.shape[1]), 0.0, 1.0)
        )
        return Restored(Picture(pixels, alpha), made, notices)

    return restore_one


if __name__ == "__main__":
    main()
