"""A pipeline folder becomes a bundle: every stage's graph and the manifest beside the networks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffbody_ref import __version__
from diffbody_ref.libraries import silence_libraries
from diffbody_ref.models.graphs import GRAPH
from diffbody_ref.models.text import write_vocabulary
from diffbody_ref.ops.devices import PRECISIONS
from diffbody_ref.ops.files import replace_folder
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.stages import bind_stages, stages_of
from export.onnx import export_onnx
from export.parity import REPORT_JSON, REPORT_PAGE, parity, write_reports
from export.weights import WeightStore
from runtime.bundle import MANIFEST, UNREAD, Bundle, Manifest, StageEntry, file_entry, graph_kind, sha256

RECORD = "provenance.json"  # in an unfinished bundle: what its stages were made from
GRAPHS = (".onnx", ".data", ".plan")
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript")


def export_bundle(
    model: Path, out: Path, precisions: tuple[str, ...] = ("float32",), progress: Progress = silent
) -> Path:
    """Export the pipeline in `model` to the bundle `out`, replacing one that is there when the new one is complete.

    `out` may be `model`: then the pipeline's folder itself becomes a bundle. A cut export goes on with the stages that
    are missing, if the model's weights are still the same.

    Args:
        precisions: of the graphs; see `ops.devices.PRECISIONS`.

    Raises:
        FileNotFoundError: `model` is no pipeline folder.
        ValueError: unknown precision; a link in `model` leads nowhere; a graph does not fit its stage, or is beyond its
            tolerance (see `export.parity`).
    """
    if unknown := set(precisions) - set(PRECISIONS):
        raise ValueError(f"unknown precision {min(unknown)!r}, choose of {', '.join(PRECISIONS)}")
    silence_libraries()
    pipeline = DiffBodyPipeline.from_pretrained(model)
    provenance = {"weights": weights_hash(model), "diffbody": __version__, **{name: version(name) for name in PACKAGES}}
    part = out.with_name(f".{out.name}.part")
    _start_or_resume(part, model, provenance)
    write_vocabulary(pipeline.tokenizer, part / "tokenizer")
    store = WeightStore(part)
    count = len(stages_of(pipeline.components))
    total = count * len(precisions)
    for turn, precision in enumerate(precisions):
        dtype = getattr(torch, precision)
        same = pipeline if dtype == torch.float32 else DiffBodyPipeline.from_pretrained(model, torch_dtype=dtype)
        for place, stage in enumerate(bind_stages(same)):
            progress(turn * count + place, total, f"{stage.name} {precision}")
            path = part / graph_path(stage.name, precision)
            if not path.exists():
                fresh = path.with_suffix(".fresh.onnx")
                export_onnx(stage, fresh, store)
                fresh.rename(path)
    manifest = lambda: _manifest(pipeline, model.name, precisions, part, provenance).to_json()  # noqa: E731
    (part / MANIFEST).write_text(manifest(), encoding="utf-8")
    progress(total, total, "parity")
    reports = [parity(pipeline, Bundle.open(part), precision) for precision in precisions]
    write_reports(reports, part)
    if failures := [failure for report in reports for failure in report.failures]:
        raise ValueError(f"{part / REPORT_PAGE}: {len(failures)} beyond tolerance: {failures[0]}")
    (part / RECORD).unlink()
    (part / MANIFEST).write_text(manifest(), encoding="utf-8")
    replace_folder(part, out)
    return out


def graph_path(stage: str, precision: str) -> str:
    """A stage's graph in the bundle."""
    return f"{stage}.{precision}.onnx"


def weights_hash(model: Path) -> str:
    """SHA-256 over the names and contents of a pipeline folder's files: weights, configurations, vocabulary.

    Raises:
        ValueError: the folder holds no weights, or a link that leads nowhere or back to a folder around it.
    """
    whole = hashlib.sha256()
    for path in _networks(model):
        if path.suffix not in UNREAD:
            whole.update(f"{path.relative_to(model).as_posix()} {sha256(path)}\n".encode())
    return whole.hexdigest()


def _networks(model: Path) -> list[Path]:
    """The files of a folder that are not an earlier export's, sorted; links to files and folders are followed.

    Raises:
        ValueError: see `weights_hash`.
    """
    made = {MANIFEST, REPORT_JSON, REPORT_PAGE, RECORD}
    found = []
    for parent, folders, files in os.walk(model, followlinks=True):
        here = Path(parent)
        around = {here.resolve(), *here.resolve().parents}
        for name in (*folders, *files):
            path = here / name
            if not path.exists():
                raise ValueError(f"{path}: a link that leads nowhere; a model must be complete to be exported")
            if path.is_symlink() and path.resolve() in around:
                raise ValueError(f"{path}: a link that leads back to a folder around it")
        found += [
            here / name
            for name in files
            if name == GRAPH or (Path(name).suffix not in GRAPHS and name not in made)  # a component may be a graph
        ]
    if not any(path.suffix == ".safetensors" for path in found):
        raise ValueError(f"{model}: holds no weights (*.safetensors)")
    return sorted(path for path in found if path.is_file())


def _start_or_resume(part: Path, model: Path, provenance: dict[str, str]) -> None:
    """The networks alone, or with the stages that an export of the same weights by the same versions left."""
    record = part / RECORD
    if record.is_file() and json.loads(record.read_text()) == provenance:
        return
    shutil.rmtree(part, ignore_errors=True)
    for path in _networks(model):
        copy = part / path.relative_to(model)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    record.write_text(json.dumps(provenance))


def _tokenizer(pipeline: DiffBodyPipeline) -> dict[str, Any]:
    """The tokenizer without its vocabulary, which the folder holds."""
    backend = pipeline.tokenizer.backend_tokenizer
    length = pipeline.text_encoder.config.max_position_embeddings
    backend.enable_truncation(length)
    pad = {"pad_id": pipeline.tokenizer.pad_token_id, "pad_token": pipeline.tokenizer.pad_token}
    backend.enable_padding(length=length, **pad)
    values = json.loads(backend.to_str())
    for bulky in ("vocab", "merges"):
        del values["model"][bulky]
    return values


def _manifest(
    pipeline: DiffBodyPipeline,
    name: str,
    precisions: tuple[str, ...],
    folder: Path,
    provenance: dict[str, str],
) -> Manifest:
    process = pipeline.noise_process
    return Manifest(
        name=name,
        settings=pipeline.settings,
        geometry=pipeline.geometry,
        alphas_cumprod=process.alphas_cumprod,
        prediction_type=process.prediction_type,
        stages={
            stage.name: StageEntry(
                stage.signature.inputs,
                stage.signature.outputs,
                stage.signature.sizes,
                {graph_kind(precision): graph_path(stage.name, precision) for precision in precisions},
            )
            for stage in bind_stages(pipeline)
        },
        tokenizer=_tokenizer(pipeline),
        files={
            path.relative_to(folder).as_posix(): file_entry(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix not in UNREAD and path.name not in (MANIFEST, RECORD)
        },
        provenance=provenance,
    )
