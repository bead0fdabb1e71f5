"""The model repository: `triton_models/` rendered for a bundle."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from string import Template

from diffbody_ref.ops.files import replace_folder
from runtime.bundle import MANIFEST, Bundle
from runtime.engines import EngineConfig
from runtime.engines.pool import EnginePool
from runtime.triton import pbtxt
from runtime.triton.config import RepositoryConfig
from runtime.triton.contract import ENSEMBLE, MODEL, MODELS, PIPELINE_MODEL, READY, ModelParameters, ModelTensors
from runtime.triton.plans import choose_plans, planned_stages, write_plan_models

SOURCES = Path(__file__).parents[2] / "triton_models"
TENSORS_ON_DEVICE = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}  # a parameter of Triton's Python backend


def render(config: RepositoryConfig, out: Path) -> Path:
    """Write the repository to the folder `out`, replacing a repository that is there.

    Raises:
        ValueError: the bundle cannot be served as the configuration says; `out` is something else.
    """
    bundle = Bundle.open(config.bundle)
    if config.profile == "gpu":
        plans = choose_plans(bundle, config.precision)
    else:
        EnginePool(bundle, EngineConfig(precision=config.precision))  # raises if the bundle lacks a graph
    if out.exists() and not (out / MODEL / "config.pbtxt").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is no model repository of DiffBody; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(SOURCES, fresh, ignore=shutil.ignore_patterns("__pycache__"))
    (fresh / PIPELINE_MODEL / "1").mkdir()  # Triton wants a version's folder of an ensemble too
    values = _values(config, bundle)
    for name, model in MODELS.items():
        path = fresh / name / "config.pbtxt"
        template = Template(path.read_text(encoding="utf-8"))
        path.write_text(template.substitute(values, **_values_of_model(model)), encoding="utf-8")
    if config.profile == "gpu":
        write_plan_models(bundle, plans, fresh, config.max_queue)
    replace_folder(fresh, out)
    return out


def model_parameters(config: RepositoryConfig, bundle: Bundle) -> ModelParameters:
    """What the models' processes are told."""
    gpu = config.profile == "gpu"
    return ModelParameters(
        bundle=bundle.folder.resolve(),
        bundle_sha256=hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest(),
        engine="tensorrt" if gpu else "onnxruntime",
        guidance=config.guidance or ("torch" if gpu else "engine"),
        device="cuda" if gpu else "cpu",
        plans=planned_stages(bundle) if gpu else (),
        threads=config.threads,
        precision=config.precision,
        max_in_flight=config.max_in_flight,
        max_queue=config.max_queue,
        join_at_steps=config.join_at_steps,
        max_pixels=config.max_pixels,
        max_seconds=config.max_seconds,
        stall_seconds=config.stall_seconds,
    )


def _values(config: RepositoryConfig, bundle: Bundle) -> dict[str, str]:
    """What the names in the templates stand for, in all models."""
    parameters = pbtxt.parameters(model_parameters(config, bundle).to_strings())
    return {
        "process": f"instance_group [ {{ kind: KIND_CPU count: 1 }} ]\n{parameters}",
        "on_device": pbtxt.parameters(TENSORS_ON_DEVICE) if config.profile == "gpu" else "",
        "queue": pbtxt.dynamic_batching(config.max_queue),
        # A newcomer beyond the limit must reach the sampler, which refuses it, and not wait outside for a slot.
        "slots": str(2 * config.max_in_flight),
        "steps": pbtxt.ensemble_steps(ENSEMBLE),
        "ready": READY,
    }


def _values_of_model(model: ModelTensors) -> dict[str, str]:
    """What the names that differ from model to model stand for."""
    inputs, outputs = pbtxt.tensors(model.inputs, model.ragged), pbtxt.tensors(model.outputs)
    return {"model": model.name, "inputs": inputs, "outputs": outputs}
