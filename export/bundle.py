"""A pipeline folder becomes a bundle: every stage's graph, the tokenizer, the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from diffbody_ref import __version__
from diffbody_ref.modules import MODULES
from diffbody_ref.ops.schedule import alphas_cumprod
from diffbody_ref.pipeline import PRESET_SETTINGS, DiffBodyPipeline
from export.onnx import export_onnx
from export.parity import REPORT_PAGE, parity, write_report
from export.stages import Stage, stages
from runtime.bundle import GRAPH, MANIFEST, TOKENIZER, Bundle, Geometry, Manifest, StageEntry, file_entry, sha256

RECORD = "provenance.json"  # in an unfinished bundle: what its stages were made from
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript")

Progress = Callable[[int, int, str], None]
"""(stages done, stages in all, the one at work)."""


def export_bundle(
    model: Path, out: Path, torch_stages: tuple[str, ...] = ("guidance",), progress: Progress | None = None
) -> Path:
    """Export the pipeline in `model` to the bundle `out`, replacing one that is there when the new one is complete.

    Args:
        torch_stages: stages whose networks are also copied, so that PyTorch can run them.

    A cut export goes on with the stages that are missing, if the model's weights are still the same.

    Raises:
        FileNotFoundError: `model` is no pipeline folder.
        ValueError: a graph does not fit its stage, or is beyond its tolerance (see `export.parity`).
    """
    pipeline = DiffBodyPipeline.from_pretrained(model)
    provenance = {"weights": weights_hash(model), "diffbody": __version__, **{name: version(name) for name in PACKAGES}}
    part = out.with_name(f".{out.name}.part")
    _start_or_resume(part, provenance)
    todo = stages(pipeline)
    for done, stage in enumerate(todo):
        if progress is not None:
            progress(done, len(todo), stage.name)
        path = part / graph_path(stage)
        if not path.exists():
            fresh = path.with_name(f"{stage.name}.fresh.onnx")
            export_onnx(stage, fresh)
            fresh.rename(path)
    _write_tokenizer(pipeline, part / TOKENIZER)
    for name in {name for stage in torch_stages for name in MODULES[stage][1]}:
        shutil.copytree(model / name, part / "torch" / name, dirs_exist_ok=True)
    manifest = lambda: _manifest(pipeline, model.name, todo, torch_stages, part, provenance).to_json()  # noqa: E731
    (part / MANIFEST).write_text(manifest(), encoding="utf-8")
    report = parity(pipeline, Bundle.open(part))
    write_report(report, part)
    if report.failures:
        raise ValueError(f"{part / REPORT_PAGE}: {len(report.failures)} beyond tolerance: {report.failures[0]}")
    (part / RECORD).unlink()
    (part / MANIFEST).write_text(manifest(), encoding="utf-8")
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    if progress is not None:
        progress(len(todo), len(todo), "")
    return out


def graph_path(stage: Stage) -> str:
    """A stage's graph in the bundle."""
    return f"onnx/{stage.name}.onnx"


def weights_hash(model: Path) -> str:
    """SHA-256 over the names and contents of a pipeline folder's weights and configurations."""
    whole = hashlib.sha256()
    for path in sorted(p for p in model.rglob("*") if p.suffix in (".safetensors", ".json")):
        whole.update(f"{path.relative_to(model).as_posix()} {sha256(path)}\n".encode())
    return whole.hexdigest()


def _start_or_resume(part: Path, provenance: dict[str, str]) -> None:
    """An empty folder, or one with the stages that an export of the same weights by the same versions left."""
    record = part / RECORD
    if not (record.is_file() and json.loads(record.read_text()) == provenance):
        shutil.rmtree(part, ignore_errors=True)
        (part / "onnx").mkdir(parents=True)
        record.write_text(json.dumps(provenance))


def _write_tokenizer(pipeline: DiffBodyPipeline, path: Path) -> None:
    tokenizer = pipeline.tokenizer.backend_tokenizer
    length = pipeline.text_encoder.config.max_position_embeddings
    tokenizer.enable_truncation(length)
    pad = {"pad_id": pipeline.tokenizer.pad_token_id, "pad_token": pipeline.tokenizer.pad_token}
    tokenizer.enable_padding(length=length, **pad)
    tokenizer.save(str(path), pretty=False)


def _manifest(
    pipeline: DiffBodyPipeline,
    name: str,
    exported: tuple[Stage, ...],
    torch_stages: tuple[str, ...],
    folder: Path,
    provenance: dict[str, str],
) -> Manifest:
    pose = pipeline.pose.config
    return Manifest(
        name=name,
        settings={setting: pipeline.config[setting] for setting in PRESET_SETTINGS},
        geometry=Geometry(
            multiple=pipeline.multiple,
            factor=pipeline.factor,
            latent_channels=pipeline.vae.config.latent_channels,
            text_length=pipeline.text_encoder.config.max_position_embeddings,
            detector_size=pipeline.pose_detector.config.size,
            pose_height=pose.height,
            pose_width=pose.width,
            part_names=tuple(pipeline.parts.part_names),
        ),
        alphas_cumprod=tuple(alphas_cumprod().tolist()),
        stages={
            stage.name: StageEntry(stage.inputs, stage.outputs, stage.ranges, {GRAPH: graph_path(stage)})
            for stage in exported
        },
        torch_stages=torch_stages,
        files={
            path.relative_to(folder).as_posix(): file_entry(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in (MANIFEST, RECORD)
        },
        provenance=provenance,
    )
