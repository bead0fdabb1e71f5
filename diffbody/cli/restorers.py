"""What `diffbody restore` restores with: a bundle, the PyTorch reference, or servers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbody.cli.console import complain
from diffbody_ref.loading import load_pipeline
from diffbody_ref.ops.identity import Embed
from diffbody_ref.ops.progress import Progress
from runtime.engines.config import EngineConfig
from runtime.triton.config import ClientConfig

if TYPE_CHECKING:
    from diffbody.files import RestoreFile
    from diffbody_ref.ops.images import Picture
    from runtime.restore import Restoration
    from runtime.triton.client import Client

RestorePicture = Callable[["Picture"], "Restoration"]
OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


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


@dataclass(frozen=True)
class Loaded:
    """A model that restores here.

    Attributes:
        restore: restores one picture.
        embed: embeds the body parts of the people in a picture; None where the model has no part network.
        part_names: of the body parts.
    """

    restore: RestorePicture
    embed: Embed | None
    part_names: tuple[str, ...]


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


def load_reference(
    folder: Path,
    device: str,
    dtype: str | None,
    low_memory: bool,
    call: dict[str, Any],
    on_step: OnStep,
    told: Progress,
) -> Loaded:
    """Restoring with the PyTorch pipeline in `folder`.

    Args:
        folder: of the model.
        device: see `diffbody_ref.loading.load_pipeline`, as for the next two.
        dtype: of the weights.
        low_memory: one network in memory at a time.
        call: keyword arguments of the pipeline.
        on_step: called after each denoising step.
        told: called before a network is loaded.
    """
    from diffbody_ref.ops.processing import resize_alpha
    from diffbody_ref.ops.samplers import steps_to_run
    from diffbody_ref.storage import upcasts
    from diffbody_ref.structure import part_embedder
    from runtime.restore import Restoration

    pipeline = load_pipeline(folder, device, dtype, low_memory=low_memory, progress=told)
    if dtype is not None and upcasts(pipeline._execution_device.type, dtype):
        complain(
            f"--dtype {dtype}: this CPU has no such arithmetic; the large networks' weights are kept in {dtype}, and "
            "each layer computes in float32",
            "notice",
        )
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

    if pipeline.parts is None:
        return Loaded(restore_picture, None, ())
    embed = part_embedder(pipeline.parts, pipeline._execution_device)
    return Loaded(restore_picture, embed, tuple(pipeline.parts.part_names))


def load_bundle(folder: Path, engines: EngineConfig, call: dict[str, Any], on_step: OnStep, told: Progress) -> Loaded:
    """Restoring with the bundle in `folder`.

    Args:
        folder: of the bundle.
        engines: how its stages are run.
        call: keyword arguments of `runtime.restore.Restorer.restore`.
        on_step: called after each denoising step.
        told: called before a stage is loaded, with the number of those that were so far.
    """
    from runtime.bundle import Bundle
    from runtime.engines.pool import EnginePool
    from runtime.restore import Restorer, load_tokenizer

    bundle, opened = Bundle.open(folder), count()
    pool = EnginePool(bundle, engines, opening=lambda stage: told(next(opened), 0, f"loading {stage}"))
    restorer = Restorer(bundle.manifest, pool.infer, load_tokenizer(bundle))
    tell_of_slow_precision(engines)

    def restore_picture(picture: Picture) -> Restoration:
        on_step(0, 1)
        return restorer.restore(picture, **call, callback=lambda done: on_step(done.step + 1, done.num_steps))

    def embed(pixels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        target = restorer.find_parts(np.ascontiguousarray(pixels.transpose(2, 0, 1))[None], boxes).target
        return target.embeddings, target.visibility

    return Loaded(restore_picture, embed if "parts" in restorer.manifest.stages else None, restorer.geometry.part_names)


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


def with_side_pictures(model: Loaded, names: tuple[str, ...]) -> RestoreFile:
    """Restoring, and making what goes beside the restored picture.

    Args:
        model: restores.
        names: of `diffbody.side_pictures.SIDE_PICTURES`.
    """
    from diffbody.files import Job, Output
    from diffbody.reports import report_of
    from diffbody.side_pictures import REPORT, draw
    from diffbody_ref.ops.identity import identity_notices, restored_identity
    from diffbody_ref.ops.images import Picture

    def restore_file(picture: Picture, job: Job) -> Output:
        result = model.restore(picture)
        found, notices = result.intermediates, list(result.notices)
        made = draw([name for name in names if name != REPORT], picture.pixels, result.pixels, found)
        if REPORT not in names:
            return Output(Picture(result.pixels, result.alpha), made, notices)
        people = None
        if model.embed is not None:
            people = restored_identity(model.embed, model.part_names, found.regression, result.pixels, found.boxes)
            notices += identity_notices(people)
        report = report_of(result, people, notices)
        return Output(Picture(result.pixels, result.alpha), {**made, REPORT: report}, notices)

    return restore_file
