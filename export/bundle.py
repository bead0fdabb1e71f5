"""A pipeline folder becomes a bundle: every stage's graph and the manifest beside the networks."""

from __future__ import annotations

import hashlib
import json
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
from diffbody_ref.ops.files import files_below, replace_folder
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.pipeline import DiffBodyPipeline
from export.onnx import export_onnx
from export.parity import REPORT_JSON, REPORT_PAGE, parity, write_reports
from export.source import Source, check_disk
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
    are missing, if the model's weights are still the same. What can be known to fail does so before the first graph is
    made. One stage's networks are in memory at a time.

    Args:
        precisions: of the graphs; see `ops.devices.PRECISIONS`.

    Raises:
        FileNotFoundError: `model` is no pipeline folder.
        OSError: the disk has no room for the bundle.
        ValueError: unknown precision; what `Source.open` refuses; a graph does not fit its stage, or is beyond its
            tolerance (see `export.parity`).
    """
    if unknown := set(precisions) - set(PRECISIONS):
        raise ValueError(f"unknown precision {min(unknown)!r}, choose of {', '.join(PRECISIONS)}")
    silence_libraries()
    source = Source.open(model)
    _tokenizer(source.pipeline)  # it may not be one that the manifest can hold
    provenance = {"weights": weights_hash(model), "diffbody": __version__, **{name: version(name) for name in PACKAGES}}
    part = out.with_name(f".{out.name}.part")
    _start_or_resume(part, source, provenance)
    store = WeightStore(part)
    total = len(source.stages) * len(precisions)
    graphs = [(stage.name, precision) for precision in precisions for stage in source.stages]
    for done, (name, precision) in enumerate(graphs):
        progress(done, total, f"{name} {precision}")
        path = part / graph_path(name, precision)
        if not path.exists():
            fresh = path.with_suffix(".fresh.onnx")
            export_onnx(source.load(name, getattr(torch, precision)), fresh, store, simplify=not source.large)
            fresh.rename(path)
    manifest = lambda: _manifest(source, model.name, precisions, part, provenance).to_json()  # noqa: E731
    (part / MANIFEST).write_text(manifest(), encoding="utf-8")
    tell = lambda done, of, name: progress(total, total, f"parity, {name}")  # noqa: E731
    reports = [parity(source, Bundle.open(part), precision, progress=tell) for precision in precisions]
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
    found = [
        path
        for path in files_below(model)
        if path.name == GRAPH or (path.suffix not in GRAPHS and path.name not in made)
    ]
    if not any(path.suffix == ".safetensors" for path in found):
        raise ValueError(f"{model}: holds no weights (*.safetensors)")
    return found


def _start_or_resume(part: Path, source: Source, provenance: dict[str, str]) -> None:
    """The networks alone, or with the stages that an export of the same weights by the same versions left.

    Raises:
        OSError: the disk has no room for them.
    """
    record = part / RECORD
    if record.is_file() and json.loads(record.read_text()) == provenance:
        return
    shutil.rmtree(part, ignore_errors=True)
    paths = _networks(source.folder)
    check_disk(part, sum(path.stat().st_size for path in paths))
    for path in paths:
        copy = part / path.relative_to(source.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    write_vocabulary(source.pipeline.tokenizer, part / "tokenizer")
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
    source: Source,
    name: str,
    precisions: tuple[str, ...],
    folder: Path,
    provenance: dict[str, str],
) -> Manifest:
    pipeline = source.pipeline
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
            for stage in source.stages
        },
        tokenizer=_tokenizer(pipeline),
        files={
            path.relative_to(folder).as_posix(): file_entry(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix not in UNREAD and path.name not in (MANIFEST, RECORD)
        },
        provenance=provenance,
    )
