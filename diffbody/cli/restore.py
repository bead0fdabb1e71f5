"""`diffbody restore`: with a bundle, with the PyTorch reference, or on servers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffbody.cli.console import ProgressLines, complain, interrupted, one_interrupt, progress_bars
from diffbody.cli.options import (
    FLAG,
    THE_MODELS,
    Bundle,
    OutputOptions,
    Verbosity,
    check_options,
    engine_config,
    file_option,
    output_options,
    quality_option,
    restore_settings,
    server_option,
    takes,
    verbosity,
    without_none,
)
from diffbody_ref.loading import load_pipeline, model_folder
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.options import RestoreOptions
from runtime.engines.config import EngineConfig
from runtime.triton.config import ClientConfig

if TYPE_CHECKING:
    from diffbody.files import Plan, Recipe, RestoreFile, Result
    from diffbody_ref.ops.images import Picture
    from runtime.restore import Restoration
    from runtime.triton.client import Client


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

    @property
    def tell_progress(self) -> bool:
        """Whether they can: over gRPC only."""
        return not any(url.startswith("http") for url in self.urls)


def servers(
    url: Annotated[
        list[str] | None,
        server_option(
            "Server that restores, in place of this program: `localhost:8001` (gRPC) or `http://localhost:8000`; with "
            "TLS `grpcs://HOST` or `https://HOST`. "
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


@takes(outputs=output_options, settings=restore_settings, engines=engine_config, remote=servers, says=verbosity)
def restore(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT", help="Pictures, or folders of pictures, of any format that is read. `-` is standard input."
        ),
    ],
    out: Annotated[
        Path | None,
        file_option(
            "File (png, jpg, webp, avif, tif) of one restored picture, or folder for several. `-` is standard output.",
            "--out",
            "-o",
            metavar="PATH",
            show_default="beside the input",
        ),
    ] = None,
    recursive: Annotated[
        bool, file_option("Takes the pictures in sub-folders, too.", "--recursive", "-r", **FLAG)
    ] = False,
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
    *,
    outputs: OutputOptions,
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
    says: Verbosity,
) -> None:
    """Restore pictures of people: photo.jpg becomes photo.restored.png.

    A picture that fails does not stop the others. In a run over a folder or several pictures, what is restored already
    from the same picture with the same settings is skipped: start an interrupted run again, and it goes on. The file
    .diffbody.jsonl beside the outputs records what each was made from. The exit code is 2 if a picture failed, and 130
    after Ctrl-C.

    Examples:

    - `diffbody restore photo.jpg`

    - `diffbody restore photo.jpg -o better.png --upscale 2 --prompt "a woman with short brown hair, a red coat"`

    - `diffbody restore holidays/ -o restored/ --recursive --compare --format jpg`

    - `diffbody restore photo.jpg --sampler dpm++ --steps 15 --body-guidance-every 3` (several times faster)

    - `diffbody restore holidays/ -o restored/ --url localhost:8001` (on a server that `diffbody serve` started)

    - `curl -s https://example.com/photo.jpg | diffbody restore - -o - > better.png`
    """
    from diffbody import files
    from diffbody.cli.recipes import by_bundle, by_pytorch, by_servers, recipe
    from diffbody.cli.report import Report
    from diffbody.cli.streams import standard_streams
    from diffbody.side_pictures import BEFORE_AFTER, INTERMEDIATES

    settings |= without_none(body_guidance_every=body_guidance_every, upscale=upscale, tile_size=tile_size)
    check_options(settings, seed)
    if sum((model is not None, bundle is not None, bool(remote.urls))) > 1:
        raise ValueError("--model, --bundle and --url: give one of them")
    if remote.urls and intermediates:
        raise ValueError("--intermediates: a server sends the restored picture only; restore here, without --url")
    call = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed, **settings}
    side_pictures = (BEFORE_AFTER,) * compare + INTERMEDIATES * intermediates
    folder = (bundle or NANO_FOLDER) if model is None else model_folder(model)
    one_at_a_time = not remote.urls

    with (
        ExitStack() as at_end,
        one_interrupt(),
        standard_streams(inputs, out, outputs.format, side_pictures, says.as_json) as streams,
    ):
        plan = files.plan(streams.inputs, streams.out, format=outputs.format or "png", recursive=recursive)
        check_outputs(plan, outputs, side_pictures)
        report = Report(says, plan.single, not streams.to_stdout, streams.hidden)
        report.left_out(plan.left_out)
        with progress_bars(not says.quiet) as bars:
            show = Progress(
                bars, len(plan.jobs), settings["num_inference_steps"], says.quiet or says.as_json or plan.single
            )

            client = functools.cache(lambda: connect(remote, at_end))

            def load() -> RestoreFile:
                if remote.urls:
                    return load_client(client(), remote.tell_progress, call, show.step, compare)
                if model is None:
                    return with_side_pictures(load_bundle(folder, engines, call, show.step), side_pictures)
                return with_side_pictures(load_reference(folder, engines.device, call, show.step), side_pictures)

            def tell(result: Result) -> None:
                report.result(result)
                show.done()

            def made_by() -> Recipe:
                if remote.urls:
                    return recipe(call, outputs, by_servers(client().bundle()))
                by = by_bundle(folder, engines.precision) if model is None else by_pytorch(folder)
                return recipe(call, outputs, by)

            summary = files.run(
                plan,
                load,
                made_by,
                files.Settings(
                    outputs.overwrite,
                    side_pictures,
                    outputs.quality,
                    outputs.strip_metadata,
                    workers=1 if one_at_a_time else remote.concurrency,
                ),
                on_start=lambda job: show.start(job.source.name),
                on_result=tell,
                on_interrupt=at_end.close,
            )
        if not summary.interrupted:
            report.end(summary, plan.left_out)
            streams.finish()
    if summary.interrupted:
        interrupted(len(summary.results), summary.left)


class Progress:
    """How far a run is: bars on a terminal, else a line now and then."""

    def __init__(self, bars: Any, pictures: int, steps: int, silent: bool) -> None:
        self._bars, self._pictures, self._count = bars, pictures, 0
        self._lines = None if silent or not bars.disable else ProgressLines("pictures")
        self._picture_bar = bars.add_task("pictures", total=pictures)
        self._step_bar = bars.add_task("steps", total=steps)

    def start(self, name: str) -> None:
        """A picture is begun."""
        self._bars.update(self._picture_bar, description=name)

    def step(self, done: int, steps: int) -> None:
        """A denoising step is done."""
        self._bars.update(self._step_bar, completed=done, total=steps)

    def done(self) -> None:
        """A picture is done."""
        self._count += 1
        self._bars.update(self._picture_bar, completed=self._count)
        if self._lines is not None:
            self._lines.show(self._count, self._pictures)


def check_outputs(plan: Plan, outputs: OutputOptions, side_pictures: Sequence[str]) -> None:
    """What can be told of the outputs' options before a model is loaded.

    Raises:
        ValueError: options that do not fit each other, or outputs of a single picture that exist.
    """
    from diffbody import files
    from diffbody_ref.ops.formats import output_format

    written = [output_format(suffix) for suffix in sorted({job.target.suffix for job in plan.jobs})]
    if outputs.format is not None and any(each != output_format(outputs.format) for each in written):
        raise ValueError(f"--format {outputs.format}: -o names a file of another format; leave one of them out")
    if outputs.quality is not None and (lossless := [each.name for each in written if each.quality is None]):
        raise ValueError(f"--quality: {lossless[0]} is lossless and has none; choose --format jpg, webp or avif")
    if plan.single and not outputs.overwrite:
        job = plan.jobs[0]
        files.check_absent([job.target, *(job.side_picture(name) for name in side_pictures)])


def tell_of_slow_precision(engines: EngineConfig) -> None:
    """Say that half precision is slow on a CPU, where it runs on one."""
    if engines.precision == "float32" or engines.engine == "tensorrt" or engines.device == "cuda":
        return
    if engines.device == "auto":
        if engines.engine == "torch":
            import torch

            on_gpu = torch.cuda.is_available()
        else:
            from runtime.engines.onnxruntime import best_device

            on_gpu = best_device() == "cuda"
        if on_gpu:
            return
    complain(
        f"--precision {engines.precision} on a CPU can take 30 times as long as float32, which is as good", "notice"
    )


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
    tell_of_slow_precision(engines)

    def restore_picture(picture: Picture) -> Restoration:
        on_step(0, 1)
        return restorer.restore(picture, **call, callback=lambda done: on_step(done.step + 1, done.num_steps))

    return restore_picture


def connect(remote: Servers, at_end: ExitStack) -> Client:
    """The client of servers.

    Args:
        at_end: when it is closed, what is under way is cancelled, and the servers are left.

    Raises:
        UnavailableError: none of them answers.
    """
    from runtime.triton.client import Client, UnavailableError

    client = Client(ClientConfig(remote.urls, remote.timeout, concurrency=remote.concurrency, api_key=remote.api_key))
    at_end.callback(client.close)
    if not client.is_ready():
        raise UnavailableError(f"{', '.join(remote.urls)}: no server answers; start one with `diffbody serve`")
    return client


def load_client(
    client: Client, with_progress: bool, call: dict[str, Any], on_step: OnStep, compare: bool
) -> RestoreFile:
    """Restoring on servers.

    Args:
        with_progress: call `on_step`.
        call: keyword arguments of `runtime.triton.client.Client.restore`.
        compare: make the side picture of before and after.
    """
    from diffbody.files import Job, Output
    from diffbody.side_pictures import before_after

    def restore_file(picture: Picture, job: Job) -> Output:
        # The file as it is: the server reads it as we do.
        watch = (lambda done: on_step(done.step, done.steps)) if with_progress else None
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
