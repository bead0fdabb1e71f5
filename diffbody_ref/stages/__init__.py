"""The one table of stages: all that is done to stages (export, parity, engines, serving, benchmarks) derives from it.

A stage is one class: its module, the pipeline's components that it is made of, its tensors with their ranges and
example draws, its tolerance. `docs/extending.md` says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffbody_ref.stages.base import BoundStage, Stage
from diffbody_ref.stages.denoising import Denoiser, TextEncoder
from diffbody_ref.stages.guidance import Guidance
from diffbody_ref.stages.people import Detector, Parts, Pose
from diffbody_ref.stages.pictures import Restorer, VaeDecoder, VaeEncoder

if TYPE_CHECKING:
    from diffbody_ref.pipeline import DiffBodyPipeline

STAGES: dict[str, type[Stage]] = {
    "restorer": Restorer,
    "pose_detector": Detector,
    "pose": Pose,
    "parts": Parts,
    "text_encoder": TextEncoder,
    "vae_encoder": VaeEncoder,
    "denoiser": Denoiser,
    "guidance": Guidance,
    "vae_decoder": VaeDecoder,
}
"""The stages by name, in the order in which a picture meets them."""


def build_stage(name: str, components: Mapping[str, Any]) -> Stage:
    """A stage's module from a pipeline's components, in evaluation mode."""
    kind = STAGES[name]
    return kind(*(components[component] for component in kind.components)).eval().requires_grad_(False)


def stages_of(components: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages that can be made of a pipeline's components, some of which may be None."""
    lacking = {name for name, component in components.items() if component is None}
    return tuple(name for name, kind in STAGES.items() if lacking.isdisjoint(kind.components))


def bind_stages(pipeline: DiffBodyPipeline) -> tuple[BoundStage, ...]:
    """Every stage that a pipeline has the networks of, with them."""
    modules = {name: build_stage(name, pipeline.components) for name in stages_of(pipeline.components)}
    return tuple(
        BoundStage(name, module, module.signature(pipeline.geometry, pipeline.settings))
        for name, module in modules.items()
    )
