"""What becomes of a server under load: python -m benchmarks.soak

Four questions to `diffbody serve`: is it as large after thousands of requests as before; what do crowds get whose
clients leave at a deadline; how long is it away when something kills it, and does anything stay behind; is every
answer a picture, or a clear error after which to try again. The exit code is 2 if an answer is no such thing.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.launched import Launched, Resources, children_of_all_threads, launch, resources, tritons, wait_until
from benchmarks.timing import RESULTS, SAMPLES, machine
from diffbody.cli.console import progress_bar, user_errors
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import encode_image, read_image
from runtime.bundle import MANIFEST
from runtime.triton.client import Client, ClientConfig, ClientError, UnavailableError
from runtime.triton.client_messages import request_tensors
from runtime.triton.contract import MODEL
from runtime.triton.request_notes import memory_folder
from runtime.triton.run_folder import TRITONS_PREFIX, sweep

SIZES = ((96, 64), (128, 128), (160, 96), (64, 96), (256, 128), (192, 96))  # (height, width) of what is sent
SAMPLE_EVERY = 25  # requests between looks at what the server takes
WARM_UP = 75  # requests: some of each size
IN_A_ROW = 2  # clients
CLIENTS = 4  # that ask while something is killed
LATE, BUSY, AWAY, RESTORED = "late", "busy", "away", "restored"  # what answers are, and that is all that they may be
TARGETS = ("triton", "model", "launcher")
LABELS = {
    "megabytes": "memory, MB",
    "shared_megabytes": "shared memory, MB",
    "descriptors": "open files",
    "threads": "threads",
}


@dataclass
class Findings:
    """What was seen.

    Attributes:
        in_a_row: what the server took, after so many requests.
        crowds: what the answers were, by round; and what the server took afterwards.
        kills: what was killed, seconds until the next good answer, and what stayed behind.
        unclear: errors that are none of the expected ones.
        restarts: lines of the launcher's log that tell of one.
    """

    in_a_row: list[tuple[int, Resources]] = field(default_factory=list)
    crowds: list[dict[str, Any]] = field(default_factory=list)
    kills: list[dict[str, Any]] = field(default_factory=list)
    unclear: Counter[str] = field(default_factory=Counter)
    restarts: list[str] = field(default_factory=list)


def main(
    requests: Annotated[int, typer.Option(help="Number of requests of mixed size in a row.", min=0)] = 3000,
    rounds: Annotated[int, typer.Option(help="Number of crowds.", min=0)] = 10,
    crowd: Annotated[int, typer.Option(help="Number of clients that ask in the same moment.", min=1)] = 200,
    deadline: Annotated[float, typer.Option(help="Seconds after which each of them leaves.")] = 20.0,
    kills: Annotated[int, typer.Option(help="How often each of Triton, a model, the launcher is killed.", min=0)] = 20,
    threads: Annotated[int, typer.Option(help="CPU threads per operator of the server; 0 is all cores.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for soak.json and soak.png.")] = RESULTS,
) -> None:
    """Load a server for hours, and kill it now and then."""
    with progress_bar("requests, crowds and kills") as show:
        for path in run(requests, rounds, crowd, deadline, kills, threads, out, show):
            print(path)


def run(
    requests: int,
    rounds: int,
    crowd: int,
    deadline: float,
    kills: int,
    threads: int,
    out: Path,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Load and kill; print what was found, and write it.

    Returns:
        The files written.

    Raises:
        ValueError: an answer was neither a picture nor a clear error, or something stayed behind.
    """
    total = requests + WARM_UP + rounds * crowd + kills * len(TARGETS)
    done, counting = 0, threading.Lock()

    def advance(count: int = 1) -> None:
        nonlocal done
        with counting:
            done += count
            progress(done, total)

    found = Findings()
    sweep()
    with tempfile.TemporaryDirectory() as folder:
        bundle = small_bundle(Path(folder) / "bundle")
        options = ("--bundle", str(bundle), "--threads", str(threads), "--restarts", "1000")
        with launch(*options) as launched:
            ask_in_a_row(launched, requests, found, advance)
            for number in range(rounds):
                found.crowds.append(send_crowd(launched, crowd, deadline, number, found))
                advance(crowd)
            kill_parts(launched, kills, found, advance)
            found.restarts = [line.strip() for line in launched.lines if "started again" in line]
        kill_launchers(options, kills, found, advance)
    about = {
        "machine": machine("cpu"),
        "asked": {"requests": requests, "rounds": rounds, "crowd": crowd, "deadline": deadline, "kills": kills},
    }
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, "growth": growth(found), **asdict(found)}, indent=1)
    (out / "soak.json").write_text(text + "\n", encoding="utf-8")
    plot(found, out / "soak.png")
    print_findings(found)
    if found.unclear or any(kill["left"] for kill in found.kills):
        raise ValueError(f"{out / 'soak.json'}: unclear answers, or something stayed behind")
    return [out / "soak.json", out / "soak.png"]


def small_bundle(folder: Path) -> Path:
    """nano, but that it does not bring pictures to 256x128: their sizes stay mixed, and thousands take an hour only."""
    shutil.copytree(NANO_FOLDER, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["settings"] |= {"base_height": SIZES[0][0], "base_width": SIZES[0][1]}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def pictures() -> list[bytes]:
    """A person at each of the sizes, as PNG."""
    person = read_image(SAMPLES / "synthetic_1.jpg").pixels
    rows, columns = person.shape[:2]
    grids = [np.ix_(np.arange(h) * rows // h, np.arange(w) * columns // w) for h, w in SIZES]
    return [encode_image(np.ascontiguousarray(person[grid])) for grid in grids]


def ask_in_a_row(launched: Launched, count: int, found: Findings, advance: Callable[[], None]) -> None:
    """Requests one after the other, from `IN_A_ROW` clients, and what the server takes as it goes."""
    sent = pictures()

    def ask(number: int) -> None:
        try:
            client.restore(sent[number % len(sent)], num_inference_steps=4 + number % 5, seed=number)
        except ClientError as error:
            found.unclear[str(error)] += 1
        advance()

    with Client(ClientConfig((launched.address,), tries=100)) as client, ThreadPoolExecutor(IN_A_ROW) as pool:
        for number in range(0, WARM_UP + count, SAMPLE_EVERY):
            if number >= WARM_UP:
                found.in_a_row.append((number - WARM_UP, resources(launched)))
            list(pool.map(ask, range(number, min(number + SAMPLE_EVERY, WARM_UP + count))))
    found.in_a_row.append((count, resources(launched)))


def send_crowd(launched: Launched, count: int, deadline: float, number: int, found: Findings) -> dict[str, Any]:
    """Plain clients of Triton that ask in the same moment, and leave at their deadline; what they get."""
    import tritonclient.grpc as grpc
    from tritonclient.utils import np_to_triton_dtype

    sent = pictures()

    def ask(place: int) -> str:
        inputs = []
        for name, value in request_tensors(sent[place % len(sent)], {"num_inference_steps": 4, "seed": place}).items():
            inputs.append(grpc.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)))
            inputs[-1].set_data_from_numpy(value)
        try:
            with grpc.InferenceServerClient(launched.address) as client:
                client.infer(MODEL, inputs, client_timeout=deadline)
        except Exception as error:
            return kind_of(str(error), found)
        return RESTORED

    before = len([line for line in launched.lines if "ready again" in line])
    start = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        answers = Counter(pool.map(ask, range(count)))
    seconds = seconds_to_next_answer(launched.address)
    restarts = len([line for line in launched.lines if "ready again" in line]) - before
    return {
        "round": number,
        "answers": dict(answers),
        "seconds": round(time.monotonic() - start, 1),
        "seconds_to_next_answer": round(seconds, 1),
        "restarts": restarts,
        "resources": asdict(resources(launched)),
    }


def kind_of(message: str, found: Findings) -> str:
    """What an error of gRPC is; one that is nothing expected is noted."""
    kinds = {
        LATE: ("DEADLINE_EXCEEDED", "time is over"),
        BUSY: ("retry later",),
        AWAY: ("UNAVAILABLE", "failed to connect", "Connection reset", "Socket closed"),
    }
    for kind, words in kinds.items():
        if any(word in message for word in words):
            return kind
    found.unclear[message] += 1
    return "unclear"


def seconds_to_next_answer(address: str) -> float:
    """Until a client with patience gets a picture."""
    start = time.monotonic()
    with Client(ClientConfig((address,), timeout=1200.0, tries=10_000)) as client:
        client.restore(pictures()[0], num_inference_steps=1)
    return time.monotonic() - start


@contextmanager
def load(address: str, found: Findings) -> Iterator[None]:
    """Clients that ask all the time."""
    ended, sent = threading.Event(), pictures()

    def ask(place: int) -> None:
        with Client(ClientConfig((address,), tries=1)) as client:
            while not ended.is_set():
                try:
                    client.restore(sent[place % len(sent)], num_inference_steps=8)
                except UnavailableError:
                    time.sleep(0.2)
                except ClientError as error:
                    found.unclear[str(error)] += 1

    workers = [threading.Thread(target=ask, args=(place,)) for place in range(CLIENTS)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        ended.set()
        for worker in workers:
            worker.join()


def kill_parts(launched: Launched, count: int, found: Findings, advance: Callable[[], None]) -> None:
    """Kill Triton and models under load."""
    draw = random.Random(0)
    for target in ("triton", "model") * count:
        with load(launched.address, found):
            time.sleep(draw.uniform(0.5, 5.0))
            triton = launched.triton()
            os.kill(triton if target == "triton" else draw.choice(children_of_all_threads(triton)), signal.SIGKILL)
            start, ready = time.monotonic(), len([line for line in launched.lines if "ready again" in line])
            launched.wait_for("the server is ready again", ready + 1)
            seconds_to_next_answer(launched.address)
            seconds = time.monotonic() - start
        found.kills.append({"target": target, "seconds_to_next_answer": round(seconds, 1), "left": []})
        advance()


def kill_launchers(options: tuple[str, ...], count: int, found: Findings, advance: Callable[[], None]) -> None:
    """Kill launchers under load, and while they start: the next one works, and tidies up."""
    draw = random.Random(1)
    for number in range(count):
        with launch(*options) as launched:
            if number % 2:
                launched.wait_for("")  # a line of its log
                time.sleep(draw.uniform(0.0, 3.0))
                triton = next(iter(tritons(launched.process.pid)), 0)
                launched.process.kill()
            else:
                with load(launched.address, found):
                    time.sleep(draw.uniform(0.5, 5.0))
                    triton = launched.triton()
                    launched.process.kill()
            start = time.monotonic()
            wait_until(lambda pid=triton: not group(pid))  # type: ignore[misc]
            gone = time.monotonic() - start
        start = time.monotonic()
        with launch(*options) as launched:
            seconds_to_next_answer(launched.address)
            seconds = time.monotonic() - start
            launched.process.terminate()
            launched.process.wait()
        left = left_behind()
        found.kills.append(
            {
                "target": "launcher",
                "seconds_to_next_answer": round(seconds, 1),
                "seconds_of_processes": round(gone, 1),
                "left": left,
            }
        )
        advance()


def left_behind() -> list[str]:
    """What launchers of this user that are dead have in memory: folders, and regions whose folder is gone."""
    folders = [path.name for path in sweep()]
    mark = f"diffbody-serve-{os.getuid()}-"
    living = {path.name for path in memory_folder().glob(f"{mark}*")}
    regions = [path.name for path in memory_folder().glob(f"{TRITONS_PREFIX}{mark}*")]
    return folders + [name for name in regions if not any(folder in name for folder in living)]


def group(pid: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if state != "Z" and pid and int(number) == pid:
            found.append(int(folder.name))
    return found


def growth(found: Findings) -> dict[str, float]:
    """Of each resource, the last quarter of the requests in a row over the first."""
    rows = [asdict(taken) for _, taken in found.in_a_row]
    quarter = len(rows) // 4
    if not quarter:
        return {}
    first, last = rows[:quarter], rows[-quarter:]
    mean = lambda part, name: float(np.mean([row[name] for row in part]))  # noqa: E731
    return {name: round(mean(last, name) / max(mean(first, name), 1e-9), 4) for name in rows[0]}


def print_findings(found: Findings) -> None:
    """Growth, answers of the crowds, and seconds until the next good answer."""
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "found")
    for name, ratio in growth(found).items():
        table.add_row(f"{name}, last quarter over first", f"{ratio:.3f}")
    answers: Counter[str] = Counter()
    for crowd in found.crowds:
        answers.update(crowd["answers"])
    table.add_row("answers of the crowds", ", ".join(f"{count} {kind}" for kind, count in answers.most_common()))
    table.add_row("restarts in crowds", str(sum(crowd["restarts"] for crowd in found.crowds)))
    for target in TARGETS:
        seconds = [kill["seconds_to_next_answer"] for kill in found.kills if kill["target"] == target]
        if seconds:
            told = f"{len(seconds)} times, {min(seconds):.1f} to {max(seconds):.1f} s until the next good answer"
            table.add_row(f"{target} killed", told)
    table.add_row("stayed behind", str(sum(len(kill["left"]) for kill in found.kills)))
    table.add_row("unclear answers", str(sum(found.unclear.values())))
    Console().print(table)


def plot(found: Findings, path: Path) -> None:
    """What the server takes over the requests in a row, and after each crowd."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    counts = [count for count, _ in found.in_a_row]
    step = max(counts[-1], 1) / 20
    crowds = [counts[-1] + step * (place + 1) for place in range(len(found.crowds))]
    for axes, (name, label) in zip(figure.subplots(2, 2).flat, LABELS.items(), strict=True):
        axes.plot(counts, [getattr(taken, name) for _, taken in found.in_a_row], color="#3b7a57", label="in a row")
        after = [crowd["resources"][name] for crowd in found.crowds]
        axes.plot(crowds, after, "o", color="#b5651d", label="after a crowd")
        axes.set(xlabel="requests", ylabel=label, ylim=(0, 1.15 * axes.dataLim.y1))
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    with user_errors():
        typer.run(main)
