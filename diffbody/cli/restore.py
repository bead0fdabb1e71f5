"""`diffbody restore`: with a bundle, with the PyTorch reference, or on servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffbody.cli.console import progress_bars, report
from diffbody.cli.options import (
    FLAG,
    THE_MODELS,
    Bundle,
    check_options,
    engine_config,
    file_option,
    quality_option,
    restore_settings,
    server_option,
    takes,
    without_none,
)
from diffbody_ref.loading import load_pipeline, model_folder
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.options import RestoreOptions
from runtime.engines.config import EngineConfig
from runtime.triton.config import ClientConfig

if TYPE_CHECKING:
    from diffbody.files import RestoreFile
    from diffbody_ref.ops.images import Picture
    from runtime.restore import Restoration


@dataclass(frozen=True)
class Servers:
    """Servers that restore, in place of this program.

    Attributes:
        urls: see `runtime.triton.client.ClientConfig`; empty is none.
        api_key: that the servers ask for.
        concurrency: pictures that are sent to them at a time.
        timeout: seconds to wait for one picture.
    """

    urls: tuple[str, ...]
    api_key: str | None
    concurrency: int
    timeout: float


def servers(
    url: Annotated[
        list[str] | None,
        server_option(
            "Server that restores, in place of this program: `localhost:8001` (gRPC) or `http://localhost:8000`. "
            "Several servers, each with a --url of its own, share the pictures.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        server_option("Key that the server asks for.", envvar="DIFFBODY_API_KEY", metavar="KEY", show_default=False),
    ] = None,
    concurrency: Annotated[
        int, server_option("Number of pictures that the servers get at a time.", metavar="<int>", min=1)
    ] = ClientConfig.concurrency,
    timeout: Annotated[float, server_option("Seconds to wait for one picture from a server.")] = ClientConfig.timeout,
) -> Servers:
    """The servers that were named."""
    return Servers(tuple(url or ()), api_key, concurrency, timeout)


@takes(settings=restore_settings, engines=engine_config, remote=servers)
def restore(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="Pictures, or folders of pictures (png, jpg, webp, bmp, tiff)."),
    ],
    out: Annotated[
        Path | None,
        file_option(
            "File (png, jpg, webp) of one restored picture, or folder for several.",
            "--out",
            "-o",
            metavar="PATH",
            show_default="beside the input",
        ),
    ] = None,
    bundle: Bundle = None,
    model: Annotated[
        str | None,
        file_option(
            "Model that PyTorch runs, in place of a bundle: `nano`, or a folder with a model_index.json.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool,
        file_option("Also writes before and after, side by side: NAME.restored_before_after.png.", "--compare", **FLAG),
    ] = False,
    intermediates: Annotated[
        bool,
        file_option(
            "Also writes what the stages found: regression, pose, attention and loss, each as NAME.restored_WHAT.png.",
            "--intermediates",
            **FLAG,
        ),
    ] = False,
    overwrite: Annotated[bool, file_option("Replaces outputs that exist.", "--overwrite", **FLAG)] = False,
    prompt: Annotated[
        str, quality_option("Description of the picture, from head to toe. It may stay empty.", metavar="TEXT")
    ] = "",
    negative_prompt: Annotated[
        str,
        quality_option(
            "Description of what the result should not look like. It needs a --guidance-scale other than 1.",
            metavar="TEXT",
        ),
    ] = "",
    seed: Annotated[int, quality_option("Seed of the noise, from 0. The same seed gives the same picture.")] = 0,
    upscale: Annotated[
        float | None,
        quality_option(
            "Output size over input size, above 0 and at most 16.", show_default="1, but at least the model's area"
        ),
    ] = None,
    *,
    settings: dict[str, Any],
    body_guidance_every: Annotated[
        int, quality_option("Body guidance acts at every k-th step only, k from 1. Less guidance is faster.")
    ] = RestoreOptions.body_guidance_every,
    tile_size: Annotated[
        int | None,
        quality_option(
            "Side of a tile in pixels, from 128. A picture that is larger is restored in tiles; small tiles need "
            "little memory.",
            show_default=THE_MODELS,
        ),
    ] = None,
    engines: EngineConfig,
    remote: Servers,
) -> None:
    """Restore pictures of people: photo.jpg becomes photo.restored.png.

    A picture that fails does not stop the others, and what is restored already is skipped: start an interrupted run
    again, and it goes on. The exit code is 2 if a picture failed.

    Examples:

    - `diffbody restore photo.jpg`

    - `diffbody restore photo.jpg -o better.png --upscale 2 --prompt "a woman with short brown hair, a red coat"`

    - `diffbody restore holidays/ -o restored/ --compare`

    - `diffbody restore photo.jpg --sampler dpm++ --steps 15 --body-guidance-every 3` (several times faster)

    - `diffbody restore holidays/ -o restored/ --url localhost:8001` (on a server that `diffbody serve` started)
    """
    from diffbody import files
    from diffbody.side_pictures import INTERMEDIATES

    settings |= without_none(body_guidance_every=body_guidance_every, upscale=upscale, tile_size=tile_size)
    check_options(settings, seed)
    if sum((model is not None, bundle is not None, bool(remote.urls))) > 1:
        raise ValueError("--model, --bundle and --url: give one of them")
    if remote.urls and intermediates:
        raise ValueError("--intermediates: a server sends the restored picture only; restore here, without --url")
    jobs = files.plan(inputs, out)
    side_pictures = ("before_after",) * compare + INTERMEDIATES * intermediates
    single = len(inputs) == 1 and not inputs[0].is_dir()
    if single and not overwrite:
        files.check_absent([jobs[0].target, *(jobs[0].side_picture(name) for name in side_pictures)])

    call = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed, **settings}
    folder = (bundle or NANO_FOLDER) if model is None else model_folder(model)
    with progress_bars() as bar:
        pictures = bar.add_task("pictures", total=len(jobs))
        step = bar.add_task("steps", total=settings["num_inference_steps"])
        show_step = lambda i, n: bar.update(step, completed=i, total=n)  # noqa: E731

        def load() -> RestoreFile:
            if remote.urls:
                return load_client(remote, call, show_step, compare)
            if model is None:
                return with_side_pictures(load_bundle(folder, engines, call, show_step), side_pictures)
            return with_side_pictures(load_reference(folder, engines.device, call, show_step), side_pictures)

        summary = files.run(
            jobs,
            load,
            overwrite=overwrite,
            side_pictures=side_pictures,
            progress=lambda i, job: bar.update(pictures, completed=i, description=job.source.name),
            workers=remote.concurrency if remote.urls else 1,
        )
    report(summary, side_pictures, single)


RestorePicture = Callable[["Picture"], "Restoration"]
OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def load_reference(folder: Path, device: str, call: dict[str, Any], on_step: OnStep) -> RestorePicture:
    """Restoring with the PyTorch pipeline in `folder`.

    Args:
        call: keyword arguments of the pipeline.
    """
    from diffbody_ref.ops.processing import resize_alpha
    from diffbody_ref.ops.samplers import steps_to_run
    from runtime.restore import Restoration

    pipeline = load_pipeline(folder, device)
    steps = steps_to_run(call["num_inference_steps"], call.get("strength", pipeline.config.strength))

    def restore_picture(picture: Picture) -> Restoration:
        on_step(0, steps)
        result = pipeline(
            picture,
            **call,
            output_type="np",
            return_intermediates=True,
            callback_on_step_end=lambda pipe, step, timestep, tensors: on_step(step + 1, steps),
        )
        pixels = result.images[0]
        alpha = None if picture.alpha is None else resize_alpha(picture.alpha, *pixels.shape[:2])
        return Restoration(pixels, alpha, result.intermediates[0], result.notices[0])

    return restore_picture


def load_bundle(folder: Path, engines: EngineConfig, call: dict[str, Any], on_step: OnStep) -> RestorePicture:
    """Restoring with the bundle in `folder`.

    Args:
        call: keyword arguments of `runtime.restore.Restorer.restore`.
    """
    from runtime.restore import Restorer

    restorer = Restorer.open(folder, engines)

    def restore_picture(picture: Picture) -> Restoration:
        on_step(0, 1)
        return restorer.restore(picture, **call, callback=lambda done: on_step(done.step + 1, done.num_steps))

    return restore_picture


def load_client(remote: Servers, call: dict[str, Any], on_step: OnStep, compare: bool) -> RestoreFile:
    """Restoring on servers.

    Args:
        call: keyword arguments of `runtime.triton.client.Client.restore`.
        compare: make the side picture of before and after.
    """
    from diffbody.files import Job, Output
    from diffbody.side_pictures import before_after
    from runtime.triton.client import Client, UnavailableError

    client = Client(ClientConfig(remote.urls, remote.timeout, concurrency=remote.concurrency, api_key=remote.api_key))
    if not client.is_ready():
        raise UnavailableError(f"{', '.join(remote.urls)}: no server answers; start one with `diffbody serve`")
    grpc = not any(url.startswith("http://") for url in remote.urls)

    def restore_file(picture: Picture, job: Job) -> Output:
        # The file as it is: the server reads it as we do.
        watch = (lambda done: on_step(done.step, done.steps)) if grpc else None
        answer = client.restore(job.source, **call, on_progress=watch)
        made = {"before_after": before_after(picture.pixels, answer.picture.pixels)} if compare else {}
        return Output(answer.picture, made, answer.report.notices)

    return restore_file


def with_side_pictures(restore_picture: RestorePicture, names: tuple[str, ...]) -> RestoreFile:
    """Restoring, and drawing what goes beside the restored picture.

    Args:
        names: see `diffbody.side_pictures.draw`.
    """
    from diffbody.files import Job, Output
    from diffbody.side_pictures import draw
    from diffbody_ref.ops.images import Picture

    def restore_file(picture: Picture, job: Job) -> Output:
        result = restore_picture(picture)
        made = draw(names, picture.pixels, result.pixels, result.intermediates)
        return Output(Picture(result.pixels, result.alpha), made, result.notices)

    return restore_file
