"""What the tests of the served pictures share."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from diffbody_ref.ops.images import Picture, encode_image
from runtime.restore import Restorer
from runtime.triton import addresses
from runtime.triton.server import Server
from tests.waiting import HANG, wait_until

SAMPLES = Path(__file__).parents[2] / "samples" / "degraded"
PERSON, WOMAN = SAMPLES / "synthetic_1.jpg", SAMPLES / "synthetic_2.jpg"
ANY_PORTS: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
LONG: dict[str, Any] = {"num_inference_steps": 1000, "strength": 1.0}


def url(server: Server, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else f"http://{server.http_url}"


def in_process(restorer: Restorer, picture: Picture, output_format: str = "png", **call: Any) -> bytes:
    restored = restorer.restore(picture, **call)
    return encode_image(restored.pixels, format=output_format, metadata=restored.metadata)


def metric(server: Server, name: str, model: str = "sampler") -> float:
    """A metric of a server; of several outcomes, the sum."""
    return read_metric(server.metrics_url, name, model)


def read_metric(address: str, name: str, model: str) -> float:
    text = addresses.fetch_here(address, timeout=HANG).decode()
    found = re.findall(rf'^{name}{{model="{model}"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))


def wait_in_flight(server: Server, count: int) -> None:
    wait_until(lambda: metric(server, "diffbody_in_flight") == count)


def wait_idle(server: Server) -> None:
    """Until nothing is worked on, and nothing waits."""
    wait_until(lambda: server.requests_under_way() == 0)


def processes_of(group: int) -> list[Path]:
    """The /proc folders of a process group."""

    def group_of(folder: Path) -> int:
        try:
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # gone meanwhile; no process
            return 0
        return 0 if state == "Z" else int(group)

    return [folder for folder in Path("/proc").iterdir() if group_of(folder) == group]


def post(server: Server, body: dict[str, Any]) -> tuple[int, str]:
    """A plain HTTP request, as anyone may send it: status and body."""
    address = f"http://{server.http_url}/v2/models/diffbody/infer"
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=HANG) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}
