"""The model repository: what is rendered is what Triton reads, and agrees with the bundle's manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import encode_image, read_image
from runtime.bundle import MANIFEST, Bundle, PlanTarget, file_entry
from runtime.restore import Restorer
from runtime.triton.client import Client, ClientConfig
from runtime.triton.config import RepositoryConfig, ServerConfig
from runtime.triton.contract import (
    ANSWER,
    ENSEMBLE,
    HEALTH_MODEL,
    MODEL,
    MODELS,
    OPTIONS,
    PIPELINE_MODEL,
    REQUEST,
    STREAM_MODEL,
    TICKET,
    TRITON_TYPES,
    plan_model,
)
from runtime.triton.plans import STAGES
from runtime.triton.repository import render
from runtime.triton.server import Server

PERSON = Path(__file__).parent.parent / "samples" / "degraded" / "synthetic_1.jpg"
TARGET = PlanTarget("tensorrt", "10.6.0", ("8.9",), "float32")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano with plans that are none: enough to render a repository of, which does not look into them."""
    folder = tmp_path_factory.mktemp("planned") / "bundle"
    shutil.copytree(NANO_FOLDER, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["plans"] = [
        {"flavour": TARGET.flavour, "version": TARGET.version, "compute_capabilities": ["8.9"], "precision": "float32"}
    ]
    for stage in manifest["stages"]:
        plan = folder / "plans" / f"{stage}.plan"
        plan.parent.mkdir(exist_ok=True)
        plan.write_text(stage)
        manifest["stages"][stage]["graphs"][TARGET.kind] = f"plans/{plan.name}"
        entry = file_entry(plan)
        manifest["files"][f"plans/{plan.name}"] = {"size": entry.size, "sha256": entry.sha256}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def configs(repository: Path) -> dict[str, model_config_pb2.ModelConfig]:
    """By Triton's own protobuf, which refuses unknown names and values of another kind."""
    found = {}
    for path in repository.glob("*/config.pbtxt"):
        found[path.parent.name] = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    return found


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_every_configuration_is_tritons(planned: Path, tmp_path: Path, profile: str) -> None:
    found = configs(render(RepositoryConfig(planned, profile), tmp_path / "models"))
    assert set(found) == set(MODELS) | ({plan_model(stage) for stage in STAGES} if profile == "gpu" else set())
    for name, config in found.items():
        assert config.name == name
        assert (tmp_path / "models" / name / "1").is_dir()
        if config.backend == "python":
            compile((tmp_path / "models" / name / "1" / "model.py").read_text(), name, "exec")


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_every_model_has_the_contracts_tensors(planned: Path, tmp_path: Path, profile: str) -> None:
    found = configs(render(RepositoryConfig(planned, profile), tmp_path / "models"))
    for name, model in MODELS.items():
        for tensors, listed in ((found[name].input, model.inputs), (found[name].output, model.outputs)):
            assert [tensor.name for tensor in tensors] == [tensor.name for tensor in listed]
            for tensor, wanted in zip(tensors, listed, strict=True):
                dtype = "STRING" if wanted.dtype == "BYTES" else wanted.dtype
                assert model_config_pb2.DataType.Name(tensor.data_type) == f"TYPE_{dtype}"
                assert tuple(tensor.dims) == wanted.shape
        for tensor, wanted in zip(found[name].input, model.inputs, strict=True):
            assert tensor.optional == wanted.optional
            assert tensor.allow_ragged_batch == (model.ragged and -1 in wanted.shape)
    steps = found[PIPELINE_MODEL].ensemble_scheduling.step
    assert [step.model_name for step in steps] == [model.name for model in ENSEMBLE]
    for step, model in zip(steps, ENSEMBLE, strict=True):
        assert dict(step.input_map) == {tensor.name: tensor.wire for tensor in model.inputs}
        assert dict(step.output_map) == {tensor.name: tensor.wire for tensor in model.outputs}


def test_the_ensemble_takes_every_option_and_joins_its_models(tmp_path: Path) -> None:
    found = configs(render(RepositoryConfig(NANO_FOLDER), tmp_path / "models"))
    ensemble = found[PIPELINE_MODEL]
    assert [tensor.name for tensor in found[MODEL].input] == [field.name for field in REQUEST]
    assert all(tensor.optional for tensor in found[MODEL].input)
    # Nobody gets in without a ticket.
    assert [tensor.name for tensor in ensemble.input if not tensor.optional] == [TICKET.name]
    assert {field.name for field in OPTIONS} <= {tensor.name for tensor in ensemble.input}
    assert [tensor.name for tensor in ensemble.output] == [field.name for field in ANSWER]
    known = {tensor.name for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:  # in the order of the method, so each needs earlier ones only
        model = found[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.input}, step.model_name
        assert set(step.input_map.values()) <= known, step.model_name
        assert set(step.output_map) <= {tensor.name for tensor in model.output}
        known |= set(step.output_map.values())
    assert {tensor.name for tensor in ensemble.output} <= known


def test_plans_are_served_with_the_manifests_tensors(planned: Path, tmp_path: Path) -> None:
    found = configs(render(RepositoryConfig(planned, "gpu", max_queue=7), tmp_path / "models"))
    stages = Bundle.open(planned).manifest.stages
    for stage in STAGES:
        config, entry = found[plan_model(stage)], stages[stage]
        for tensors, specs in ((config.input, entry.inputs), (config.output, entry.outputs)):
            assert [tensor.name for tensor in tensors] == [spec.name for spec in specs]
            for tensor, spec in zip(tensors, specs, strict=True):
                assert model_config_pb2.DataType.Name(tensor.data_type) == f"TYPE_{TRITON_TYPES[spec.dtype]}"
                assert list(tensor.dims) == [side if isinstance(side, int) else -1 for side in spec.shape[1:]]
        assert config.max_batch_size == entry.sizes["batch"].most
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
        assert config.optimization.cuda.graphs == (stage == "text_encoder")  # the one of a fixed shape
        (warm_up,) = config.model_warmup
        assert set(warm_up.inputs) == {spec.name for spec in entry.inputs}
        assert all(side > 0 for tensor in warm_up.inputs.values() for side in tensor.dims)
        plan = tmp_path / "models" / plan_model(stage) / "1" / "model.plan"
        assert plan.read_text() == stage  # the bundle's own file


def test_the_limits_reach_the_models(tmp_path: Path) -> None:
    config = RepositoryConfig(
        NANO_FOLDER, max_in_flight=5, max_queue=3, max_pixels=123_456, max_seconds=7.5, stall_seconds=8.5
    )
    found = configs(render(config, tmp_path / "models"))
    assert found["sampler"].max_batch_size > 5  # one too many must come in, to be told so
    assert found["sampler"].parameters["max_in_flight"].string_value == "5"
    assert found["preprocess"].parameters["max_pixels"].string_value == "123456"
    for front in (MODEL, STREAM_MODEL):
        told = {name: value.string_value for name, value in found[front].parameters.items()}
        assert (told["max_in_flight"], told["max_queue"], told["max_seconds"]) == ("5", "3", "7.5")
    assert found[HEALTH_MODEL].parameters["stall_seconds"].string_value == "8.5"
    assert found["restorer"].dynamic_batching.default_queue_policy.max_queue_size == 3


def test_what_cannot_be_rendered_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no TensorRT plans in float16 .*`diffbody plan"):
        render(RepositoryConfig(NANO_FOLDER, "gpu", "float16"), tmp_path / "models")
    with pytest.raises(ValueError, match="has no float16 graph"):
        render(RepositoryConfig(NANO_FOLDER, precision="float16"), tmp_path / "models")
    with pytest.raises(ValueError, match="unknown profile 'tpu'"):
        RepositoryConfig(NANO_FOLDER, "tpu")
    with pytest.raises(ValueError, match="max_queue must be above 0"):
        RepositoryConfig(NANO_FOLDER, max_queue=0)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").touch()
    with pytest.raises(ValueError, match="no model repository of DiffBody"):
        render(RepositoryConfig(NANO_FOLDER), tmp_path / "notes")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_rendering_again_replaces_the_repository(tmp_path: Path) -> None:
    for limit in ("5", "6"):
        folder = render(RepositoryConfig(NANO_FOLDER, max_in_flight=int(limit)), tmp_path / "models")
        assert configs(folder)["sampler"].parameters["max_in_flight"].string_value == limit
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


STAND_IN = """
import triton_python_backend_utils as pb_utils
from runtime.bundle import Bundle
from runtime.engines.pool import EnginePool


class TritonPythonModel:
    def initialize(self, args):
        self.engines = EnginePool(Bundle.open({bundle!r}))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feed = {{tensor.name(): tensor.as_numpy() for tensor in request.inputs()}}
        found = self.engines.infer({stage!r}, feed)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in found.items()])
"""


def test_the_gpu_profile_is_wired_as_the_cpu_one(planned: Path, tmp_path: Path) -> None:
    """Without a GPU: each plan's place is taken by the same stage on ONNX Runtime, and so is the sampler's engine."""
    repository = render(RepositoryConfig(planned, "gpu", guidance="engine"), tmp_path / "models")
    for path in repository.glob("*/config.pbtxt"):
        text = path.read_text().replace('string_value: "tensorrt"', 'string_value: "onnxruntime"')
        text = text.replace('string_value: "cuda"', 'string_value: "cpu"')
        if path.parent.name.endswith("_plan"):
            stage = path.parent.name.removesuffix("_plan")
            (path.parent / "1" / "model.plan").unlink()
            (path.parent / "1" / "model.py").write_text(STAND_IN.format(bundle=str(planned), stage=stage))
            text = text.replace('backend: "tensorrt"', 'backend: "python"').replace("KIND_GPU", "KIND_CPU")
        path.write_text(text)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    call = {"num_inference_steps": 2, "guidance_scale": 1.5, "prompt": "a man"}
    restorer = Restorer.open(planned)
    with (
        Server(ServerConfig(repository, **ports)) as server,  # type: ignore[arg-type]
        Client(ClientConfig((server.grpc_url,))) as client,
    ):
        # Passed on as it is; with the residual; in tiles.
        for case in ({"use_residual": False}, {"use_residual": True}, {"tile_size": 128}):
            answer = client.restore(PERSON, **call, **case)
            wanted = restorer.restore(read_image(PERSON), **call, **case).pixels  # type: ignore[arg-type]
            assert answer.image == encode_image(wanted)
    assert np.isfinite(wanted).all()
