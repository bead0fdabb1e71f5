"""Memory and time of every step from files to a restored picture at sd21's size: python -m benchmarks.full_size

Weights are random, so the pictures show nothing; the detector is nano's, which finds the person in the sample, so that
body guidance runs. Each step is a process of its own. Peak memory (resident set, with the files that are mapped) is
exact; seconds depend on what else the machine does. A step that takes more than `--limit` GB is ended.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.timing import RESULTS, SAMPLES, machine
from diffbody.cli.console import complain, user_errors
from diffbody_ref.ops.files import write_whole

NICE, SECONDS = 15, 0.2  # of the steps; between two looks at a step's memory
GB = 1e9


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: in the table.
        arguments: of `diffbody`.
        needs: a path without which it cannot run.
    """

    name: str
    arguments: tuple[str, ...]
    needs: Path


@dataclass(frozen=True)
class Measured:
    """What a step took.

    Attributes:
        gigabytes: the peak of its resident set.
        seconds: from its start to its end.
        outcome: "done", or why it is not.
    """

    gigabytes: float
    seconds: float
    outcome: str


def steps_of(work: Path, size: int, steps: int) -> list[Step]:
    """All steps, in their order."""
    random, imported, model, bundle = (work / name for name in ("random", "imported", "model", "bundle"))
    sample = work / "sample.jpg"
    call = (str(sample), "--steps", str(steps), "--size", str(size), "--report", "--overwrite")
    at_model = ("restore", *call, "--model", str(model))
    at_bundle = ("restore", *call, "--bundle", str(bundle))
    return [
        Step("import", ("import", str(imported), str(random)), random),
        Step("release", ("release", str(imported), str(model), "--preset", "sd21"), imported),
        Step("restore --model", at_model, model),
        Step("restore --model --dtype bfloat16", (*at_model, "--dtype", "bfloat16"), model),
        Step("restore --model --dtype float16", (*at_model, "--dtype", "float16"), model),
        Step("restore --model --low-memory", (*at_model, "--low-memory"), model),
        Step("export", ("export", "--model", str(model), "-o", str(bundle)), model),
        Step("restore --bundle", at_bundle, bundle),
        Step("restore --bundle --low-memory", (*at_bundle, "--low-memory"), bundle),
    ]


def main(
    work: Annotated[Path, typer.Option(help="Folder for 20 GB of files; what is there already is used again.")],
    size: Annotated[int, typer.Option(help="Side of the square at which the sample is restored, in pixels.")] = 512,
    steps: Annotated[int, typer.Option(help="Number of denoising steps.", min=1)] = 2,
    limit: Annotated[float, typer.Option(help="Memory in GB at which a step is ended.")] = 14.0,
    only: Annotated[list[str] | None, typer.Option(help="Step to run, by its name in the table.")] = None,
    sample: Annotated[Path, typer.Option(help="Picture of a person.")] = SAMPLES / "synthetic_1.jpg",
    out: Annotated[Path, typer.Option(help="JSON file; other steps' results in it stay.")] = RESULTS / "full-size.json",
) -> None:
    """Measure import, release, restore and export of a model of sd21's size with random weights."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "random" / "model_index.json").exists():
        run([sys.executable, "-c", f"from benchmarks.full_size import build; build({str(work / 'random')!r})"], limit)
    shutil.copy2(sample, work / "sample.jpg")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"steps": {}}
    for step in steps_of(work, size, steps):
        if only and step.name not in only:
            continue
        if not step.needs.exists():
            complain(f"{step.name}: {step.needs} is not there; run the steps before it first", "left out")
            continue
        measured = run([sys.executable, "-m", "diffbody", *step.arguments], limit)
        found["steps"][step.name] = asdict(measured)
        found |= {"size": size, "denoising_steps": steps, "machine": machine("cpu")}
        write_whole(out, json.dumps(found, indent=1) + "\n")
        print(f"{step.name}: {measured.gigabytes:.1f} GB, {measured.seconds:.0f} s, {measured.outcome}", flush=True)
    print("\n".join(table(found["steps"])))


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| step | peak memory | seconds | |", "|---|---:|---:|---|"]
    for name, row in results.items():
        lines.append(f"| `{name}` | {row['gigabytes']:.1f} GB | {row['seconds']:.0f} | {row['outcome']} |")
    return lines


def run(command: Sequence[str], limit: float) -> Measured:
    """Run a process at low priority, and look at its memory as long as it runs."""
    started, peak, outcome = time.monotonic(), 0, "done"
    process = subprocess.Popen(command, preexec_fn=lambda: os.nice(NICE))
    while process.poll() is None:
        peak = max(peak, peak_memory(process.pid))
        if peak > limit * GB:
            outcome = f"ended at {limit:g} GB"
            process.kill()
        time.sleep(SECONDS)
    seconds = time.monotonic() - started
    if process.returncode and outcome == "done":
        outcome = f"failed with exit code {process.returncode}"
    return Measured(round(peak / GB, 2), round(seconds, 1), outcome)


def peak_memory(pid: int) -> int:
    """Bytes of a process's resident set at its peak so far; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = dict(line.partition(":")[::2] for line in status.splitlines())
    return 1024 * int(lines["VmHWM"].split()[0]) if "VmHWM" in lines else 0


def build(folder: str) -> None:
    """Write a model of sd21's size with random weights, float16, one network in memory at a time."""
    import torch

    from diffbody_ref.components import COMPONENT_CLASSES, build_component, save_component
    from diffbody_ref.ops.builtin import NANO_FOLDER
    from diffbody_ref.ops.options import PRESETS

    torch.manual_seed(0)
    out = Path(folder)
    for name in COMPONENT_CLASSES:
        if name == "pose_detector":
            shutil.copytree(NANO_FOLDER / name, out / name, dirs_exist_ok=True)
            continue
        component = build_component(name, "sd21")
        save_component(out, name, component.half() if isinstance(component, torch.nn.Module) else component)
        del component
    index = {"_class_name": "DiffBodyPipeline", **PRESETS["sd21"].of_pipeline()}
    index |= {name: [kind.__module__.partition(".")[0], kind.__name__] for name, kind in COMPONENT_CLASSES.items()}
    (out / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with user_errors():
        typer.run(main)
