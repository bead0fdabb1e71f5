"""A bundle's TensorRT plans as models of their own: stages of the `gpu` profile, whose tensors stay on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.bundle import Bundle, PlanTarget, StageEntry, TensorSpec, split_side
from runtime.engines.cuda import compute_capability
from runtime.triton.contract import TRITON_TYPES

# Stages that the server runs by themselves; the others are within a model that needs them step by step or box by box.
STAGES = ("restorer", "text_encoder", "vae_encoder", "vae_decoder")


def plan_model(stage: str) -> str:
    """The name of a stage's model."""
    return f"{stage}_plan"


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
    """Add a model of each stage in `STAGES` to the repository; the plans stay where they are."""
    for stage in STAGES:
        entry = bundle.manifest.stages[stage]
        folder = repository / plan_model(stage)
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.plan").symlink_to((bundle.folder / entry.graphs[target.kind]).resolve())
        (folder / "config.pbtxt").write_text(plan_config(stage, entry, max_queue), encoding="utf-8")


def plan_config(stage: str, entry: StageEntry, max_queue: int) -> str:
    """The model's configuration, from the stage's tensors and sizes in the manifest."""
    usual = {name: given.usual for name, given in entry.sizes.items()}
    warm_up = ", ".join(_warm_up(spec, usual) for spec in entry.inputs)
    fixed = all(isinstance(side, int) for spec in entry.inputs for side in spec.shape[1:])
    queue = f"timeout_action: REJECT allow_timeout_override: true max_queue_size: {max_queue}"
    lines = [
        f'name: "{plan_model(stage)}"',
        'backend: "tensorrt"',
        f"max_batch_size: {entry.sizes['batch'].most}",
        f"input [\n{_tensors(entry.inputs)}\n]",
        f"output [\n{_tensors(entry.outputs)}\n]",
        "instance_group [ { kind: KIND_GPU count: 1 } ]",
        f"dynamic_batching {{ max_queue_delay_microseconds: 200 default_queue_policy {{ {queue} }} }}",
        f'model_warmup [ {{ name: "usual size" batch_size: 1 {warm_up} }} ]',
    ]
    if fixed:  # a graph is of one shape
        lines.append("optimization { cuda { graphs: true } }")
    return "\n".join(lines) + "\n"


def _tensors(specs: Sequence[TensorSpec]) -> str:
    def one(spec: TensorSpec) -> str:
        dims = ", ".join(str(side if isinstance(side, int) else -1) for side in spec.shape[1:])
        return f'  {{ name: "{spec.name}" data_type: TYPE_{TRITON_TYPES[spec.dtype]} dims: [ {dims} ] }}'

    return ",\n".join(one(spec) for spec in specs)


def _warm_up(spec: TensorSpec, sizes: dict[str, int]) -> str:
    sides = [side if isinstance(side, int) else split_side(side)[0] * sizes[split_side(side)[1]] for side in spec.shape]
    dims = ", ".join(str(side) for side in sides[1:])
    kind = TRITON_TYPES[spec.dtype]
    return f'inputs {{ key: "{spec.name}" value: {{ data_type: TYPE_{kind} dims: [ {dims} ] zero_data: true }} }}'
