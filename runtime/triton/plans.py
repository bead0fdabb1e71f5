"""A bundle's TensorRT plans as models of their own: stages of the `gpu` profile, whose tensors stay on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffbody_ref.ops.tensors import TensorSpec
from runtime.bundle import Bundle, PlanTarget, StageEntry
from runtime.engines.cuda import compute_capability
from runtime.triton import pbtxt
from runtime.triton.contract import TRITON_TYPES, TritonTensor, plan_model

# Stages that the server runs by themselves; the others are within a model that needs them step by step or box by box.
STAGES = ("restorer", "text_encoder", "vae_encoder", "vae_decoder")


def planned_stages(bundle: Bundle) -> tuple[str, ...]:
    """Those of `STAGES` that the bundle has."""
    return tuple(stage for stage in STAGES if stage in bundle.manifest.stages)


def choose_plans(bundle: Bundle, precision: str) -> PlanTarget:
    """The plans to serve: of full TensorRT, which Triton's backend runs, and if there are several, of this GPU.

    Raises:
        ValueError: there are none; the message says what to build.
    """
    plans = bundle.manifest.plans
    fitting = [plan for plan in plans if (plan.flavour, plan.precision) == ("tensorrt", precision)]
    if len(fitting) > 1:
        here = compute_capability()
        fitting = [plan for plan in fitting if here in plan.compute_capabilities]
    if not fitting:
        raise ValueError(
            f"{bundle.folder}: no TensorRT plans in {precision} for this GPU (there are: "
            f"{', '.join(plan.kind for plan in plans) or 'none'}); build them on the GPU that will serve them, with "
            f"`diffbody plan {bundle.folder} --tensorrt-flavour tensorrt --precision {precision}`"
        )
    return fitting[0]


def write_plan_models(bundle: Bundle, target: PlanTarget, repository: Path, max_queue: int) -> None:
    """Add a model for each planned stage to a repository that is being made. The plans stay in the bundle."""
    for stage in planned_stages(bundle):
        entry = bundle.manifest.stages[stage]
        folder = repository / plan_model(stage)
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.plan").symlink_to((bundle.folder / entry.graphs[target.kind]).resolve())
        (folder / "config.pbtxt").write_text(plan_config(stage, entry, max_queue), encoding="utf-8")


def plan_config(stage: str, entry: StageEntry, max_queue: int) -> str:
    """The configuration of a plan's model, from the stage's tensors and sizes in the manifest."""
    usual = {name: size.usual for name, size in entry.sizes.items()}
    warm_up = ", ".join(_warm_up(spec, usual) for spec in entry.inputs)
    lines = [
        f'name: "{plan_model(stage)}"',
        'backend: "tensorrt"',
        f"max_batch_size: {entry.sizes['batch'].most}",
        f"input [\n{_tensors(entry.inputs)}\n]",
        f"output [\n{_tensors(entry.outputs)}\n]",
        "instance_group [ { kind: KIND_GPU count: 1 } ]",
        pbtxt.dynamic_batching(max_queue, delay_microseconds=200),
        f'model_warmup [ {{ name: "usual size" batch_size: 1 {warm_up} }} ]',
    ]
    if all(isinstance(side, int) for spec in entry.inputs for side in spec.shape[1:]):
        lines.append("optimization { cuda { graphs: true } }")  # a CUDA graph is of one shape
    return "\n".join(lines) + "\n"


def _tensors(specs: Sequence[TensorSpec]) -> str:
    """A stage's tensors without the batch; dynamic sizes are any."""
    shapes = [tuple(side if isinstance(side, int) else -1 for side in spec.shape[1:]) for spec in specs]
    return pbtxt.tensors(
        [TritonTensor(spec.name, TRITON_TYPES[spec.dtype], shape) for spec, shape in zip(specs, shapes, strict=True)]
    )


def _warm_up(spec: TensorSpec, sizes: Mapping[str, int]) -> str:
    """An input of the request by which the model warms up: zeros of these sizes."""
    shape = spec.with_sizes(sizes)[1:]
    kind = pbtxt.data_type(TRITON_TYPES[spec.dtype])
    return f'inputs {{ key: "{spec.name}" value: {{ data_type: {kind} {pbtxt.dims(shape)} zero_data: true }} }}'
