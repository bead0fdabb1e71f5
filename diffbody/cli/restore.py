"""`diffbody restore`: with a bundle, with the PyTorch reference, or on servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffbody.cli.console import progress_bars, report
from diffbody.cli.options import (
    BodyGuidance,
    Colour,
    Device,
    Guidance,
    Precision,
    Residual,
    Sampler,
    Steps,
    Strength,
    check_options,
    given,
    number,
)
from diffbody_ref.loading import load_pipeline, model_folder
from diffbody_ref.ops.builtin import NANO_FOLDER

if TYPE_CHECKING:
    import numpy as np

    from diffbody.files import Restore
    from diffbody_ref.ops.images import Picture
    from diffbody_ref.ops.results import Intermediates


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
    negative_prompt: Annotated[
        str, typer.Option(help="What the picture should not look like; needs a --guidance-scale other than 1.")
    ] = "",
    steps: Steps = 50,
    guidance_scale: Guidance = None,
    body_guidance_scale: BodyGuidance = None,
    body_guidance_every: Annotated[int, typer.Option(help="Body guidance at every k-th step only, from 1.")] = 1,
    strength: Strength = None,
    sampler: Sampler = "ddpm",
    colour_fix: Colour = "wavelet",
    use_residual: Residual = None,
    upscale: Annotated[
        float | None,
        typer.Option(
            help="Output over input size, up to 16. Default: 1, but at least the model's area.", show_default=False
        ),
    ] = None,
    tile_size: Annotated[
        int | None, number("Pixels, from 128. Larger pictures are done in tiles; small tiles need little memory.")
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
    from diffbody import files
    from diffbody.side_pictures import INTERMEDIATES

    settings = given(
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        body_guidance_scale=body_guidance_scale,
        body_guidance_every=body_guidance_every,
        strength=strength,
        sampler=sampler,
        colour_fix=colour_fix,
        use_residual=use_residual,
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


Run = Callable[["Picture"], tuple["np.ndarray", "Intermediates", list[str]]]
"""A picture → the restored pixels, what was found on the way, notices."""


def load_reference(folder: Path, device: str, call: dict[str, Any], on_step: Callable[[int, int], None]) -> Run:
    """Restoring with the PyTorch pipeline in `folder`.

    Args:
        call: keyword arguments of the pipeline.
        on_step: called with (steps done, steps in all).
    """
    from diffbody_ref.ops.samplers import steps_to_run

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
        how: fields of `runtime.engines.EngineConfig`.
    """
    from runtime.engines import EngineConfig
    from runtime.restore import Restorer

    restorer = Restorer.open(folder, EngineConfig(device=device, **how))

    def run(picture: Picture) -> tuple[np.ndarray, Intermediates, list[str]]:
        on_step(0, 1)
        result = restorer.restore(picture, **call, callback=lambda done: on_step(done.step + 1, done.num_steps))
        return result.pixels, result.intermediates, result.notices

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
    from diffbody.files import Job, Restored
    from diffbody.side_pictures import before_after
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
    """A function that restores one picture and draws what goes beside it, for `diffbody.files.run`.

    Args:
        companions: see `diffbody.side_pictures.draw`.
    """
    from diffbody.files import Job, Restored
    from diffbody.side_pictures import draw
    from diffbody_ref.ops.images import Picture
    from diffbody_ref.ops.processing import resize_alpha

    def restore_one(picture: Picture, job: Job) -> Restored:
        pixels, found, notices = run(picture)
        made = draw(companions, picture.pixels, pixels, found)
        alpha = None if picture.alpha is None else resize_alpha(picture.alpha, *pixels.shape[:2])
        return Restored(Picture(pixels, alpha), made, notices)

    return restore_one
