"""What the server costs and gives: python -m benchmarks.serving

Three questions, each answered side by side in one run: how long a picture takes through the server against in-process;
how many pictures a second, and how long they take, at several numbers of clients; and what it is worth that requests
join the running batch at any step, against the same sampler taking requests in batches as they come.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.timing import RESULTS, SAMPLES, machine, measure, print_table, write_json
from diffbody.cli.console import progress_bar, user_errors
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import encode_image, read_image
from runtime.restore import Restorer
from runtime.triton.client import AsyncClient, Client, ClientConfig
from runtime.triton.config import RepositoryConfig, ServerConfig
from runtime.triton.contract import SAMPLER_MODEL, STEPS_METRIC
from runtime.triton.repository import render
from runtime.triton.server import Server

CONCURRENCY = (1, 2, 4, 8)
STEPS = (5, 10, 20)  # of mixed requests
MODES = {"in flight": True, "by request": False}  # whether newcomers join the running batch at its next step
ARRIVALS_SEED = 0


@dataclass(frozen=True)
class Load:
    """What came of one load: pictures a second, seconds a picture, and how the sampler batched them.

    Attributes:
        mode: a name in `MODES`.
        clients: how many ask at the same time, each again when it is answered.
        pictures: how many were restored.
        seconds: for all of them.
        throughput: pictures a second.
        p50: median of the seconds that a picture took.
        p95: the 95th percentile.
        executions: how often the sampler ran.
        steps: how many denoising steps that were.
    """

    mode: str
    clients: int
    pictures: int
    seconds: float
    throughput: float
    p50: float
    p95: float
    executions: int
    steps: int


def main(
    bundle: Annotated[
        Path, typer.Option(help="Bundle to serve, a folder that diffbody export made.", show_default="nano")
    ] = NANO_FOLDER,
    sample: Annotated[Path, typer.Option(help="Picture to restore.")] = SAMPLES / "synthetic_1.jpg",
    rounds: Annotated[
        int, typer.Option(help="Number of rounds of in-process against server, after the warm-up.", min=1)
    ] = 5,
    pictures: Annotated[int, typer.Option(help="Number of pictures of each load.", min=8)] = 24,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for serving-cpu.json and serving-cpu.png.")
    ] = RESULTS,
) -> None:
    """Time the server against in-process, and at 1 to 8 clients with and without batching in flight."""
    with progress_bar("restorations") as show:
        for path in run(bundle, sample, rounds, pictures, out, show):
            print(path)


def run(
    bundle: Path, sample: Path, rounds: int, pictures: int, out: Path, progress: Callable[[int, int], None]
) -> list[Path]:
    """Measure, print the tables, write serving-cpu.json and serving-cpu.png to `out`.

    Args:
        rounds: of in-process against server.
        pictures: of each load.

    Returns:
        The files written.
    """
    total = rounds + 1 + pictures * len(CONCURRENCY) * len(MODES)
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal done
        done += count
        progress(done, total)

    with tempfile.TemporaryDirectory(prefix="diffbody-bench-") as folder:
        repository = render(RepositoryConfig(bundle), Path(folder) / "models")
        with Server(_any_ports(repository)) as server:
            timings = _overhead(bundle, sample, rounds, server, lambda count: advance(1))
            trace = _perf_analyzer(server, sample)
        loads: list[Load] = []
        for mode, join_at_steps in MODES.items():
            config = RepositoryConfig(bundle, join_at_steps=join_at_steps)
            with Server(_any_ports(render(config, Path(folder) / mode.replace(" ", "-")))) as server:
                for clients in CONCURRENCY:
                    loads.append(asyncio.run(_load(server, sample, mode, clients, pictures, advance)))
    print_table(timings, "one picture, 20 steps")
    _print_loads(loads)
    about: dict[str, Any] = {
        "bundle": bundle.name,
        "machine": machine("cpu"),
        "mixed_steps": STEPS,
        "loads": [asdict(load) for load in loads],
        "perf_analyzer": trace,
    }
    stem = out / "serving-cpu"
    write_json(stem.with_suffix(".json"), about, timings)
    plot(loads, f"{bundle.name}, {about['machine']['name']}", stem.with_suffix(".png"))
    return [stem.with_suffix(".json"), stem.with_suffix(".png")]


def _any_ports(repository: Path) -> ServerConfig:
    return ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0)


def _overhead(bundle: Path, sample: Path, rounds: int, server: Server, progress: Callable[[int], None]) -> list[Any]:
    """In-process, through gRPC, and through HTTP; each reads and encodes the file."""
    restorer = Restorer.open(bundle)
    call: dict[str, Any] = {"num_inference_steps": 20, "strength": 1.0, "seed": 0}
    with (
        Client(ClientConfig((server.grpc_url,))) as grpc,
        Client(ClientConfig((f"http://{server.http_url}",))) as http,
    ):
        ways: dict[str, Callable[[], object]] = {
            "in-process": lambda: encode_image(restorer.restore(read_image(sample), **call).pixels),
            "server, gRPC": lambda: grpc.restore(sample, **call),
            "server, HTTP": lambda: http.restore(sample, **call),
        }
        return measure(ways, rounds, lambda done: progress(done) if done % len(ways) == 0 else None)


async def _load(
    server: Server, sample: Path, mode: str, clients: int, pictures: int, progress: Callable[[], None]
) -> Load:
    """Clients that ask again as soon as they are answered, each for another number of steps."""
    draw = random.Random(ARRIVALS_SEED)
    jobs = [(number, draw.choice(STEPS), draw.uniform(0.0, 0.5)) for number in range(pictures)]
    taken: list[float] = []
    async with AsyncClient(ClientConfig((server.grpc_url,), tries=50)) as client:
        await client.restore(sample, num_inference_steps=2)

        async def work() -> None:
            while jobs:
                seed, steps, pause = jobs.pop(0)
                await asyncio.sleep(pause)  # so that they do not come in step
                start = time.perf_counter()
                await client.restore(sample, num_inference_steps=steps, strength=1.0, seed=seed)
                taken.append(time.perf_counter() - start)
                progress()

        begin = time.perf_counter()
        before = _counts(server)
        await asyncio.gather(*(work() for _ in range(clients)))
        seconds = time.perf_counter() - begin
    executions, steps = (int(now - then) for now, then in zip(_counts(server), before, strict=True))
    return Load(
        mode,
        clients,
        pictures,
        round(seconds, 2),
        round(pictures / seconds, 3),
        round(statistics.median(taken), 2),
        round(float(np.quantile(taken, 0.95)), 2),
        executions,
        steps,
    )


def _counts(server: Server) -> tuple[float, float]:
    """Executions of the sampler so far, and steps."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    found = (
        re.search(rf'^{name}{{model="{SAMPLER_MODEL}"[^}}]*}} (\S+)$', text, re.MULTILINE)
        for name in ("nv_inference_exec_count", STEPS_METRIC)
    )
    executions, steps = (float(match[1]) if match else 0.0 for match in found)
    return executions, steps


def _perf_analyzer(server: Server, sample: Path) -> str | None:
    """What NVIDIA's load generator says, where it is installed; None where it is not."""
    program = shutil.which("perf_analyzer")
    if program is None:
        return None
    import base64

    data = {"data": [{"IMAGE": {"b64": base64.b64encode(sample.read_bytes()).decode()}, "NUM_INFERENCE_STEPS": [5]}]}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(data, file)
        file.flush()
        command = [program, "-m", "diffbody", "-i", "grpc", "-u", server.grpc_url, "--input-data", file.name]
        command += ["--concurrency-range", "1:4:3", "--measurement-interval", "10000"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.stdout if ended.returncode == 0 else f"failed: {ended.stderr.strip()[-300:]}"


def _print_loads(loads: list[Load]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("sampler", "clients", "pictures/s", "median s", "p95 s", "steps an execution")
    for load in loads:
        batch = load.steps / max(load.executions, 1)
        cells = (load.throughput, load.p50, load.p95, round(batch, 2))
        table.add_row(load.mode, str(load.clients), *map(str, cells))
    Console().print(table)


def plot(loads: list[Load], title: str, path: Path) -> None:
    """Pictures a second and seconds a picture over the number of clients, a line a mode."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for mode, colour in zip(MODES, ("#3b7a57", "#b5651d"), strict=True):
        own = [load for load in loads if load.mode == mode]
        clients = [load.clients for load in own]
        left.plot(clients, [load.throughput for load in own], "o-", color=colour, label=mode)
        right.plot(clients, [load.p50 for load in own], "o-", color=colour, label=f"{mode}, median")
        right.plot(clients, [load.p95 for load in own], "o--", color=colour, label=f"{mode}, 95th percentile")
    left.set(xlabel="clients", ylabel="pictures a second", ylim=(0, None), xticks=CONCURRENCY)
    right.set(xlabel="clients", ylabel="seconds a picture", ylim=(0, None), xticks=CONCURRENCY)
    right.legend(fontsize=8)
    left.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    with user_errors():
        typer.run(main)
