"""The model repository: `triton_models/` rendered for a bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

from diffbody_ref.ops.folders import replace_folder
from runtime.bundle import Bundle
from runtime.triton.contract import ANSWER, MODEL, REQUEST, Field

SOURCES = Path(__file__).parents[2] / "triton_models"
PROFILES = ("cpu", "gpu")


@dataclass(frozen=True)
class RepositoryConfig:
    """What the models are told.

    Attributes:
        bundle: folder. profile: one of `PROFILES`.
        precision: of the bundle's graphs. guidance: "engine" or "torch", what runs the gradient of eq. 6.
        threads: of an operator on the CPU; 0 is all cores.
        max_in_flight: requests that are sampled at a time; to more, the server answers "unavailable".
        max_queue: requests that wait for one model; to more, as well.
        max_pixels: of a picture at work. max_seconds: after which a request is given up.
    """

    bundle: Path
    profile: str = "cpu"
    precision: str = "float32"
    guidance: str = "engine"
    threads: int = 0
    max_in_flight: int = 16
    max_queue: int = 64
    max_pixels: int = 16_000_000
    max_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"unknown profile {self.profile!r}, choose one of {', '.join(PROFILES)}")
        for name in ("max_in_flight", "max_queue", "max_pixels", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.threads < 0:
            raise ValueError(f"threads must be 0, for all cores, or more, got {self.threads}")


def render(config: RepositoryConfig, out: Path) -> Path:
    """Write the repository, replacing one that is there.

    Raises:
        ValueError: the bundle cannot be used so; `out` is something else.
    """
    bundle = Bundle.open(config.bundle)
    bundle.engines(guidance=config.guidance, precision=config.precision)  # complains of what the bundle lacks
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
    replace_folder(fresh, out)
    return out


def _values(config: RepositoryConfig, bundle: Bundle) -> dict[str, str]:
    """What stands for the names in the sources."""
    parameters = {
        "bundle": str(bundle.folder.resolve()),
        "engine": "onnxruntime",
        "guidance": config.guidance,
        "device": "cpu",
        "threads": str(config.threads),
        "precision": config.precision,
        "max_in_flight": str(config.max_in_flight),
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
        "queue": f"dynamic_batching {{ default_queue_policy {{ {queue} }} }}",
        # A newcomer beyond the limit must reach the sampler, to be told so, and not wait outside for a slot.
        "slots": str(2 * config.max_in_flight),
    }


def _tensor(field: Field, optional: bool = False) -> str:
    dtype = {"BYTES": "STRING"}.get(field.dtype, field.dtype)
    dims = ", ".join(str(side) for side in field.shape)
    return f'  {{ name: "{field.name}" data_type: TYPE_{dtype} dims: [ {dims} ]{" optional: true" * optional} }}'
