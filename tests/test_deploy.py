"""The recipes in deploy/ pass their linters and schemas, and agree with the server that they start."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import typer
import yaml

import runtime.triton.probe
from diffbody.cli import app
from runtime.triton.config import ServerConfig
from runtime.triton.contract import (
    ANSWERS_METRIC,
    AT_WORK_METRIC,
    IN_FLIGHT_METRIC,
    MODEL,
    RESTORED,
    STEPS_METRIC,
    WAITING_METRIC,
    ErrorCode,
)
from runtime.triton.launcher import DRAIN_SECONDS
from runtime.triton.repository import SOURCES
from runtime.triton.tritonserver import READY_SECONDS, STOP_SECONDS

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
GPU = DEPLOY / "kubernetes" / "gpu"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
PORTS = {name: getattr(ServerConfig(Path()), f"{name}_port") for name in ("http", "grpc", "metrics")}
# The oldest Kubernetes that the page of operations names, and the newest whose schemas are known.
KUBERNETES = ("1.25", kubernetes_validate.latest_version())
# What is counted by whom: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md,
# and the sampler itself.
TRITON_METRICS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
}
METRICS = TRITON_METRICS | {IN_FLIGHT_METRIC, STEPS_METRIC, AT_WORK_METRIC, WAITING_METRIC, ANSWERS_METRIC}


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def pod() -> dict[str, Any]:
    found: dict[str, Any] = load(GPU / "deployment.yaml")["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return dict(found)


def run(*command: str) -> str:
    """Its output; a failure shows it."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics_in(query: str) -> set[str]:
    promql_parser.parse(query)  # raises where it is no PromQL
    return set(re.findall(r"\b(?:nv|diffbody)_\w+", query))


def test_the_containerfile_passes_its_linter() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    run(hadolint, str(DEPLOY / "Containerfile"))


def test_the_containerfile_copies_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = set(re.findall(r"^COPY (\w+) \1$", CONTAINERFILE, re.MULTILINE))
    assert copied == packages | {SOURCES.name}


def test_the_container_is_not_root_and_says_its_ports() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", CONTAINERFILE, re.MULTILINE)
    assert int(user) != 0
    assert int(user) == pod()["securityContext"]["runAsUser"]
    (exposed,) = re.findall(r"^EXPOSE (.+)$", CONTAINERFILE, re.MULTILINE)
    assert [int(port) for port in exposed.split()] == list(PORTS.values())
    assert f'"runtime.triton.probe", "localhost:{PORTS["grpc"]}"' in CONTAINERFILE


def test_the_container_brings_what_its_probe_needs() -> None:
    """The extra `serve` would bring it, with a Triton of its own."""
    (install,) = re.findall(r"pip .*install .*", CONTAINERFILE)
    assert '"tritonclient[grpc]"' in install


def test_the_container_has_the_fixes_that_the_page_of_security_tells_of() -> None:
    (release,) = re.findall(r"^ARG TRITON=(\d\d\.\d\d)-py3$", CONTAINERFILE, re.MULTILINE)
    (fixed,) = re.findall(r"since (\d\d\.\d\d) all of these", SECURITY)
    assert release >= fixed
    assert f"`TRITON={release}-py3`" in OPERATIONS


def test_the_compose_file_is_one() -> None:
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", f"{DEPLOY}/compose.yaml")


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_compose_file_agrees_with_the_server(profile: str) -> None:
    service = load(DEPLOY / "compose.yaml")["services"][profile]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in PORTS.values()]
    assert f"--profile={profile}" in service["command"]
    assert service["environment"]["DIFFBODY_API_KEY"].startswith("${DIFFBODY_API_KEY:?")  # from outside, or an error
    assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS + STOP_SECONDS
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert [device["driver"] for device in devices] == ["nvidia"] * (profile == "gpu")


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", ["deployment", "service", "disruption", "autoscaler"])
def test_manifests_are_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(load(GPU / f"{name}.yaml"), version, strict=True)


def test_every_manifest_is_applied() -> None:
    resources = load(GPU / "kustomization.yaml")["resources"]
    assert sorted(resources) == sorted(path.name for path in GPU.glob("*.yaml") if path.stem != "kustomization")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_variant_without_gpus_is_valid() -> None:
    rendered = run("kubectl", "kustomize", str(DEPLOY / "kubernetes" / "cpu"))
    documents = [each for each in yaml.safe_load_all(rendered) if each["kind"] != "PodMonitor"]
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES[0], strict=True)
    assert "gpu" not in rendered


def test_the_command_knows_the_options() -> None:
    serve = typer.main.get_group(app).commands["serve"]
    known = {option for parameter in serve.params for option in parameter.opts}
    assert "DIFFBODY_API_KEY" in {parameter.envvar for parameter in serve.params}
    services = load(DEPLOY / "compose.yaml")["services"].values()
    patches = load(DEPLOY / "kubernetes" / "cpu" / "kustomization.yaml")["patches"]
    commands = [*(service["command"] for service in services), container()["args"]]
    commands += [line["value"] for line in yaml.safe_load(patches[0]["patch"]) if line["path"].endswith("/args")]
    asked = {option.partition("=")[0] for command in commands for option in command}
    asked |= set(re.findall(r"--[\w-]+", CONTAINERFILE[CONTAINERFILE.index("ENTRYPOINT") :]))
    assert len(commands) == 4
    assert asked <= known


def test_pods_agree_with_the_server() -> None:
    assert {port["name"]: port["containerPort"] for port in container()["ports"]} == PORTS
    service = load(GPU / "service.yaml")["spec"]
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == {
        name: PORTS[name] for name in ("http", "grpc")
    }
    for probe in ("startup", "readiness"):
        assert container()[f"{probe}Probe"]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    liveness = container()["livenessProbe"]
    assert liveness["exec"]["command"] == ["python3", "-m", runtime.triton.probe.__name__, f"localhost:{PORTS['grpc']}"]
    assert liveness["timeoutSeconds"] > runtime.triton.probe.TIMEOUT
    # The launcher may start a server again by itself, which takes as long as a start.
    for probe in (container()["startupProbe"], liveness):
        assert probe["periodSeconds"] * probe["failureThreshold"] >= READY_SECONDS


def test_pods_end_only_when_nothing_is_in_flight() -> None:
    *_, script = container()["lifecycle"]["preStop"]["exec"]["command"]
    sleep, most = (int(number) for number in re.findall(r"(?:sleep|timeout) (\d+)", script)[:2])
    assert sleep + most + DRAIN_SECONDS + STOP_SECONDS < pod()["terminationGracePeriodSeconds"]
    assert f"localhost:{PORTS['metrics']}/metrics" in script
    (pattern,) = re.findall(r'grep -Eq "(.+?)"', script)
    for name in (AT_WORK_METRIC, WAITING_METRIC):
        for count, busy in (("0", False), ("3", True), ("12", True)):
            assert bool(re.search(pattern, f'{name}{{model="{MODEL}"}} {count}')) is busy


def test_pods_have_a_gpu_and_no_more_rights_than_they_need() -> None:
    resources = container()["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == 1
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {mount["mountPath"] for mount in container()["volumeMounts"]}
    assert {"/tmp", "/dev/shm", "/var/cache/diffbody"} <= volumes  # what the server writes to


def test_the_key_comes_from_a_secret() -> None:
    (variable,) = container()["env"]
    assert variable["name"] == "DIFFBODY_API_KEY"
    assert set(variable["valueFrom"]) == {"secretKeyRef"}
    assert not any("kind: Secret" in path.read_text(encoding="utf-8") for path in DEPLOY.rglob("*.yaml"))


def test_the_monitor_finds_the_pods() -> None:
    monitor = load(GPU / "monitor.yaml")["spec"]
    template = load(GPU / "deployment.yaml")["spec"]["template"]
    assert monitor["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["metrics"]


def test_the_autoscaler_uses_metrics_that_the_server_has() -> None:
    rules = load(DEPLOY / "kubernetes" / "prometheus-adapter.yaml")["rules"]["custom"]
    offered = {rule["name"]["as"] for rule in rules}
    autoscaler = load(GPU / "autoscaler.yaml")["spec"]
    assert {metric["pods"]["metric"]["name"] for metric in autoscaler["metrics"]} == offered
    assert autoscaler["scaleTargetRef"]["name"] == load(GPU / "deployment.yaml")["metadata"]["name"]
    used = set()
    for rule in rules:
        (series,) = metrics_in(rule["seriesQuery"])
        assert f'container="{container()["name"]}"' in rule["seriesQuery"]
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.LabelMatchers>>", 'pod="a"')
        used |= metrics_in(query.replace("<<.GroupBy>>", "pod"))
    assert used == {WAITING_METRIC, AT_WORK_METRIC}
    assert used <= METRICS


def test_the_queries_in_the_page_of_operations_can_be_asked() -> None:
    section = OPERATIONS.partition("## Metrics")[2].partition("\n## ")[0]
    asked = [metrics_in(query) for query in re.findall(r"^\|.+`(.+?)` \|", section, re.MULTILINE)]
    assert len(asked) >= 8
    assert set().union(*asked) <= METRICS
    outcomes = set(re.findall(r'outcome=~?"([\w|]+)"', section))
    assert {each for outcome in outcomes for each in outcome.split("|")} <= {RESTORED, *ErrorCode}


def test_the_page_of_operations_knows_ports_and_versions() -> None:
    assert f"Kubernetes {KUBERNETES[0]} or later" in OPERATIONS
    for name, port in PORTS.items():
        assert re.search(rf"^\| {port} \| {name}", OPERATIONS, re.MULTILINE | re.IGNORECASE), name
