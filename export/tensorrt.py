"""Graphs as TensorRT plans, by Polygraphy: TensorRT, or TensorRT-RTX, which also builds where there is no GPU."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffbody_ref.ops.files import write_whole
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.ops.tensors import TensorSpec
from runtime.bundle import MANIFEST, Bundle, PlanTarget, StageEntry, file_entry, graph_kind
from runtime.engines.tensorrt import import_tensorrt

TIMING_CACHE = "timing.cache"


def add_plans(folder: Path, target: PlanTarget, progress: Progress = silent) -> Path:
    """Build a plan of every stage into the bundle in `folder`, replacing those of the same target.

    The manifest names the new ones once all are there, so that the bundle is whole at any time; a cut build goes on
    with the stages that are missing.

    Raises:
        BundleError: no bundle. ValueError: it lacks the graphs, or TensorRT cannot build one.
    """
    bundle = Bundle.open(folder)
    source, plans = graph_kind(target.precision), folder / "plans" / target.kind
    plans.mkdir(parents=True, exist_ok=True)
    entries = bundle.manifest.stages
    built: dict[str, Path] = {}
    for done, (name, entry) in enumerate(entries.items()):
        progress(done, len(entries), name)
        if source not in entry.graphs:
            raise ValueError(f"{folder}: has no {target.precision} graph of {name}; export it with that --precision")
        graph = entry.graphs[source]
        # The graph's hash is in the name, so that a plan of older weights is not taken for one of these.
        plan = plans / f"{name}.{bundle.manifest.files[graph].sha256[:16]}.plan"
        if not plan.exists():
            build_plan(folder / graph, entry, target, plan.with_suffix(".fresh")).rename(plan)
        built[name] = plan
    _name_plans(bundle, target, built)
    for path in set(plans.iterdir()) - set(built.values()):
        path.unlink()
    return plans


def _name_plans(bundle: Bundle, target: PlanTarget, built: dict[str, Path]) -> None:
    manifest = bundle.manifest
    paths = {name: plan.relative_to(bundle.folder).as_posix() for name, plan in built.items()}
    stages = {
        name: dataclasses.replace(entry, graphs={**entry.graphs, target.kind: paths[name]})
        for name, entry in manifest.stages.items()
    }
    older = {entry.graphs.get(target.kind) for entry in manifest.stages.values()}
    files = {path: entry for path, entry in manifest.files.items() if path not in older}
    files |= {path: file_entry(bundle.folder / path) for path in paths.values()}
    others = tuple(plan for plan in manifest.plans if plan.kind != target.kind)
    changed = dataclasses.replace(manifest, stages=stages, files=files, plans=(*others, target))
    write_whole(bundle.folder / MANIFEST, changed.to_json())


def build_plan(graph: Path, entry: StageEntry, target: PlanTarget, out: Path) -> Path:
    """Write the plan `out` of a graph, for the shapes of the stage's ranges.

    The network is strongly typed: it calculates in the types of the graph. What TensorRT measured is kept in a file
    beside the plan, so that the next build of the same network is fast.

    Raises:
        ValueError: the graph is not the stage's, or TensorRT cannot build it.
    """
    trt = import_tensorrt(target.flavour)
    from polygraphy.backend.trt import CreateConfig, Profile, engine_bytes_from_network, network_from_onnx_path
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    profile = Profile()
    for spec in entry.inputs:
        profile.add(spec.name, *profile_shapes(entry, spec))
    cache = str(out.with_name(TIMING_CACHE))

    def config(builder: Any, network: Any) -> Any:
        made = CreateConfig(profiles=[profile], load_timing_cache=cache)(builder, network)
        if target.flavour == "tensorrt_rtx":
            made.num_compute_capabilities = len(target.compute_capabilities)
            for place, capability in enumerate(target.compute_capabilities):
                made.set_compute_capability(_capability(trt, capability), place)
        return made

    try:
        # Without a GPU TensorRT reports errors of CUDA, and goes on.
        with G_LOGGER.verbosity(G_LOGGER.VERBOSE if os.environ.get("DIFFBODY_DEBUG") else G_LOGGER.CRITICAL):
            loaded = network_from_onnx_path(str(graph), strongly_typed=True)
            check_network(trt, loaded[1], entry)
            plan = engine_bytes_from_network(loaded, config=config, save_timing_cache=cache)
    except PolygraphyException as error:
        raise ValueError(f"{graph}: TensorRT cannot build it; DIFFBODY_DEBUG=1 shows its log: {error}") from error
    out.write_bytes(bytes(plan))
    return out


def profile_shapes(entry: StageEntry, spec: TensorSpec) -> tuple[tuple[int, ...], ...]:
    """The least, the usual and the largest shape of an input."""
    return tuple(
        spec.with_sizes({name: getattr(span, which) for name, span in entry.sizes.items()})
        for which in ("least", "usual", "most")
    )


def check_network(trt: Any, network: Any, entry: StageEntry) -> None:
    """Compare a parsed network with its stage.

    Raises:
        ValueError: other names, types or shapes.
    """
    found_inputs = [network.get_input(i) for i in range(network.num_inputs)]
    found_outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for found, specs in ((found_inputs, entry.inputs), (found_outputs, entry.outputs)):
        parsed, wanted = [_of_tensor(trt, tensor) for tensor in found], [_of_spec(spec) for spec in specs]
        if parsed != wanted:
            raise ValueError(f"TensorRT reads {parsed} from the graph, the stage has {wanted}")


def _of_tensor(trt: Any, tensor: Any) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, np.dtype(trt.nptype(tensor.dtype)).name, tuple(tensor.shape)


def _of_spec(spec: TensorSpec) -> tuple[str, str, tuple[int, ...]]:
    return spec.name, spec.dtype, tuple(-1 if isinstance(side, str) else side for side in spec.shape)


def _capability(trt: Any, capability: str) -> Any:
    known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    name = f"SM{capability.replace('.', '')}"
    if name not in known:
        raise ValueError(f"TensorRT-RTX builds for {', '.join(known)}, not for {name}")
    return getattr(trt.ComputeCapability, name)
