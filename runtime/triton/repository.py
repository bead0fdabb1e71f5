"""The model repository: `triton_models/` rendered for a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from string import Template

from diffbody_ref.ops.files import replace_folder
from runtime.bundle import Bundle
from runtime.triton.config import RepositoryConfig
from runtime.triton.contract import ANSWER, MODEL, REQUEST, Field
from runtime.triton.plans import STAGES, choose_plans, write_plan_models

CPU_ONLY = "FORCE_CPU_ONLY_INPUT_TENSORS"
SOURCES = Path(__file__).parents[2] / "triton_models"


def render(config: RepositoryConfig, out: Path) -> Path:
    """Write the repository, replacing one that is there.

    Raises:
        ValueError: the bundle cannot be used so; `out` is something else.
    """
    bundle = Bundle.open(config.bundle)
    if config.profile == "gpu":
        plans = choose_plans(bundle, config.precision)
    else:
        bundle.engines(precision=config.precision)  # complains of what the bundle lacks
    if out.exists() and not (out / MODEL / "config.pbtxt").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is no model repository of DiffBody; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(SOURCES, fresh, ignore=shutil.ignore_patterns("__pycache__"))
    (fresh / MODEL / "1").mkdir()  # Triton wants a version's folder of an ensemble too
    values = _values(config, bundle)
    for path in fresh.glob("*/config.pbtxt"):
        path.write_text(Template(path.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
    if config.profile == "gpu":
        write_plan_models(bundle, plans, fresh, config.max_queue)
    replace_folder(fresh, out)
    return out


def _values(config: RepositoryConfig, bundle: Bundle) -> dict[str, str]:
    """What stands for the names in the sources."""
    gpu = config.profile == "gpu"
    parameters = {
        "bundle": str(bundle.folder.resolve()),
        "engine": "tensorrt" if gpu else "onnxruntime",
        "guidance": config.guidance or ("torch" if gpu else "engine"),
        "device": "cuda" if gpu else "cpu",
        "plans": " ".join(STAGES) if gpu else "",
        "threads": str(config.threads),
        "precision": config.precision,
        "max_in_flight": str(config.max_in_flight),
        "join_at_steps": str(config.join_at_steps),
        "max_pixels": str(config.max_pixels),
        "max_seconds": str(config.max_seconds),
    }
    lines = [
        f'parameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}'
        for key, value in parameters.items()
    ]
    queue = f"timeout_action: REJECT allow_timeout_override: true max_queue_size: {config.max_queue}"
    return {
        "request": ",\n".join(_tensor(field, optional=True) for field in REQUEST),
        "request_map": "\n".join(f'      input_map {{ key: "{f.name}" value: "{f.name}" }}' for f in REQUEST),
        "answer": ",\n".join(_tensor(field) for field in ANSWER),
        "workers": "\n".join(["instance_group [ { kind: KIND_CPU count: 1 } ]", *lines]),
        # Where the plans' pictures stay.
        "on_device": f'parameters {{ key: "{CPU_ONLY}" value: {{ string_value: "no" }} }}' if gpu else "",
        "queue": f"dynamic_batching {{ default_queue_policy {{ {queue} }} }}",
        # A newcomer beyond the limit must reach the sampler, to be told so, and not wait outside for a slot.
        "slots": str(2 * config.max_in_flight),
    }


def _tensor(field: Field, optional: bool = False) -> str:
    dtype = {"BYTES": "STRING"}.get(field.dtype, field.dtype)
    dims = ", ".join(str(side) for side in field.shape)
    return f'  {{ name: "{field.name}" data_type: TYPE_{dtype} dims: [ {dims} ]{" optional: true" * optional} }}'
