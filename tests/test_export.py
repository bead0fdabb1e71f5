"""From nano to a bundle and back to pictures: every graph against its module, the bundle against the pipeline."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffbody_ref.guidance import BodyGuidance
from diffbody_ref.models.vae import decode
from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.images import read_image
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.pose import select_people
from diffbody_ref.ops.results import NO_PERSON
from diffbody_ref.pipeline import DiffBodyPipeline
from diffbody_ref.stages import STAGES, BoundStage, bind_stages
from diffbody_ref.stages.people import Detector
from export.bundle import _start_or_resume, export_bundle, weights_hash
from export.gradient import gradient_graph
from export.onnx import export_onnx
from export.source import Source
from export.weights import WeightStore
from runtime.bundle import MANIFEST, Bundle, BundleError, graph_kind
from runtime.engines import EngineConfig
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.restore import Restorer

SAMPLES = Path(__file__).parent.parent / "samples" / "degraded"
NAMES = tuple(STAGES)


@pytest.fixture(scope="module")
def pipe() -> DiffBodyPipeline:
    pipeline = DiffBodyPipeline.from_pretrained(NANO_FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The one that is built in: a pipeline's folder with the graphs that `export_bundle` put beside its networks."""
    return Bundle.open(NANO_FOLDER)


@pytest.fixture(scope="module")
def restorer(bundle: Bundle) -> Restorer:
    return Restorer.open(bundle)


def stage_of(pipe: DiffBodyPipeline, name: str) -> BoundStage:
    return next(stage for stage in bind_stages(pipe) if stage.name == name)


def test_the_stages_are_those_of_the_design(pipe: DiffBodyPipeline, bundle: Bundle) -> None:
    assert tuple(stage.name for stage in bind_stages(pipe)) == NAMES
    assert tuple(bundle.manifest.stages) == NAMES


# Dynamic sizes by name, for stages that have them; odd ones, and batches of 1 to 4.
SIZES: list[dict[str, int]] = [
    {},
    {"batch": 1, "people": 1, "height": 1, "width": 1},
    {"batch": 3, "people": 2, "height": 5, "width": 3, "chunks": 2},
    {"batch": 4, "people": 4, "height": 7, "width": 9, "chunks": 3},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_says_what_its_module_says(
    pipe: DiffBodyPipeline, bundle: Bundle, name: str, sizes: dict[str, int]
) -> None:
    stage = stage_of(pipe, name)
    ranges, entry = stage.signature.sizes, bundle.manifest.stages[name]
    feed = stage.example({axis: max(size, ranges[axis].least) for axis, size in sizes.items() if axis in ranges}, 1)
    found = OnnxRuntimeEngine(entry, bundle.folder / entry.graphs[graph_kind("float32")]).infer(feed)
    for output, wanted in stage.reference(feed).items():
        assert found[output].shape == wanted.shape
        error = np.linalg.norm(found[output] - wanted) / (np.linalg.norm(wanted) + 1e-6)
        assert error <= stage.module.tolerance_of_one_run["float32"], output


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_stays_on_its_device(pipe: DiffBodyPipeline, name: str) -> None:
    """On the device "meta" a tensor left on the CPU is refused, and so is a look at a value, which a GPU waits for."""
    stage = stage_of(pipe, name)
    feed = stage.example()
    tensors = [torch.tensor(feed[spec.name], device="meta") for spec in stage.signature.inputs]
    results = copy.deepcopy(stage.module).to("meta")(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    found = [(result.device.type, tuple(result.shape)) for result in results]
    assert found == [("meta", value.shape) for value in stage.reference(feed).values()]


def test_the_guidance_stage_is_the_references_guidance(pipe: DiffBodyPipeline) -> None:
    """Interpolation matrices instead of slices, autograd in the module: eq. 6 of two pictures with three people."""
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn((2, pipe.vae.config.latent_channels, 16, 12), generator=generator)
    reference = torch.rand((2, 3, 64, 48), generator=generator)
    windows = [[(3, 0, 40, 64), (20, 10, 48, 50)], [(0, 5, 30, 60)]]
    guidance = BodyGuidance(
        pipe.parts,
        lambda z: decode(pipe.vae, z) / 2 + 0.5,
        reference,
        windows,
        RestoreOptions(body_guidance_scale=7.0),
    )
    moved, loss = guidance(z0, 500, 0)
    assert guidance.target is not None
    assert loss is not None
    owners = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    flat = torch.tensor([window for people in windows for window in people], dtype=torch.float32)
    module = stage_of(pipe, "guidance").module
    target = guidance.target
    found, step = module(z0, target.embeddings, target.visibility, flat, owners, torch.full((2,), 7.0))
    # Sums of some thousand float32 terms in another order.
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-6)
    difference = (z0 - moved) - step
    assert float(difference.norm() / step.norm()) < 1e-3


@pytest.mark.slow
def test_the_gradient_graph_is_autograd(pipe: DiffBodyPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where no rounding moves a ReLU over its kink; sizes other than those of the tracing."""
    stage = stage_of(pipe, "guidance")
    module = copy.deepcopy(stage.module).double()
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # the module's doors are float32 otherwise

    def tensors(sizes: dict[str, int], seed: int) -> tuple[torch.Tensor, ...]:
        feed = stage.example(sizes, seed)
        return tuple(torch.from_numpy(feed[spec.name]).double() for spec in stage.signature.inputs)

    graph = gradient_graph(module, tensors({"batch": 2, "people": 3, "height": 5, "width": 4}, 0))
    for seed, sizes in enumerate(({"batch": 3, "people": 4, "height": 2, "width": 7}, {"batch": 2, "people": 2})):
        args = tensors(sizes, seed)
        for found, wanted in zip(graph(*args), module(*args), strict=True):
            assert float((found - wanted).norm() / wanted.norm()) < 1e-9


def test_suppression_in_the_graph_is_greedy_suppression(pipe: DiffBodyPipeline) -> None:
    """Against numpy's loop, on crowds of overlapping boxes."""

    class Says(torch.nn.Module):
        config = pipe.pose_detector.config

        def __init__(self, raw: torch.Tensor) -> None:
            super().__init__()
            self.raw, self.dtype = raw, raw.dtype

        def forward(self, square: torch.Tensor) -> torch.Tensor:
            return self.raw

    size, rng = pipe.pose_detector.config.size, np.random.default_rng(0)
    cells = sum((size // stride) ** 2 for stride in (8, 16, 32))
    for crowd in (0, 1, 10, 200):
        raw = rng.normal(0, 1, (1, cells, 6)).astype(np.float32)
        raw[..., 4:] = 0.1
        chosen = rng.choice(cells, crowd, replace=False)
        raw[0, chosen, 4:] = rng.uniform(0.6, 1.0, (crowd, 2))
        module = Detector(Says(torch.from_numpy(raw)))  # type: ignore[arg-type]
        boxes = module(torch.zeros(1, 3, size, size), torch.tensor([0.7]))[0].numpy()
        wanted = select_people(raw[0], size, 0.7)
        found = boxes[boxes[:, 4] > 0]
        assert len(found) == len(wanted)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-3)  # pixels in float32


@pytest.mark.parametrize(
    ("sample", "options"),
    [
        ("synthetic_1", {}),
        ("synthetic_2", {"sampler": "dpm++", "guidance_scale": 2.0, "strength": 0.8, "upscale": 1.5}),
        ("astronaut", {"sampler": "ddim", "body_guidance_scale": 0.0, "colour_fix": "adain", "tile_size": 128}),
        ("synthetic_1", {"use_attention": False, "guidance_scale": 1.0}),
        ("astronaut", {"prompt": "a woman in an orange suit", "body_guidance_every": 2, "use_pose": False}),
        ("synthetic_1", {"use_residual": False}),
    ],
)
def test_a_bundle_restores_as_the_pipeline(
    pipe: DiffBodyPipeline, restorer: Restorer, sample: str, options: dict[str, Any]
) -> None:
    picture = read_image(SAMPLES / f"{sample}.jpg")
    call = {"num_inference_steps": 4, "seed": 2, **options}
    wanted = pipe(picture, **call, output_type="np", return_intermediates=True)
    found = restorer.restore(picture, **call)
    assert found.pixels.shape == wanted.images[0].shape
    # 45 dB is what the project asks of float32 engines.
    assert -10 * np.log10(np.square(found.pixels - wanted.images[0]).mean() + 1e-12) > 45
    (theirs,) = wanted.intermediates
    assert found.notices == wanted.notices[0]
    np.testing.assert_allclose(found.intermediates.boxes, theirs.boxes, atol=0.01)
    np.testing.assert_allclose(found.intermediates.attention, theirs.attention, atol=1e-3)
    assert [t for t, _ in found.intermediates.loss_curve] == [t for t, _ in theirs.loss_curve]


@pytest.mark.parametrize("engines", [{"engine": "torch"}, {"guidance": "torch"}], ids=str)
def test_engines_may_be_mixed(bundle: Bundle, restorer: Restorer, engines: dict[str, str]) -> None:
    picture, call = read_image(SAMPLES / "synthetic_1.jpg"), {"num_inference_steps": 3}
    found = Restorer.open(bundle, EngineConfig(**engines)).restore(picture, **call)  # type: ignore[arg-type]
    wanted = restorer.restore(picture, **call)  # type: ignore[arg-type]
    assert found.intermediates.loss_curve
    assert -10 * np.log10(np.square(found.pixels - wanted.pixels).mean() + 1e-12) > 45


def test_nobody_in_the_picture(restorer: Restorer) -> None:
    result = restorer.restore(np.full((64, 64, 3), 0.5, np.float32), num_inference_steps=2)
    assert result.notices == [NO_PERSON]
    assert not result.intermediates.loss_curve


@pytest.mark.parametrize(
    "prompt", ["", "a man", "Übergröße, 2 coats!  and\ttabs", "don't", "🙂 smile", "word " * 200, "<|endoftext|> x"]
)
def test_the_tokenizer_is_the_pipelines(pipe: DiffBodyPipeline, restorer: Restorer, prompt: str) -> None:
    wanted = pipe.tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids
    assert restorer.tokenize(prompt).ids[0].tolist() == wanted


def test_the_same_weights_give_the_same_bytes(pipe: DiffBodyPipeline, bundle: Bundle, tmp_path: Path) -> None:
    store = WeightStore(bundle.folder)
    for name in ("vae_decoder", "text_encoder"):
        again = export_onnx(stage_of(pipe, name), tmp_path / f"{name}.float32.onnx", store)
        assert again.read_bytes() == (bundle.folder / f"{name}.float32.onnx").read_bytes()
        assert str(Path(__file__).parent.parent).encode() not in again.read_bytes()  # no path of this machine


def link_components(folder: Path) -> Path:
    """nano as a cache lays it out: links to the components' folders, and to the index."""
    folder.mkdir()
    for path in NANO_FOLDER.iterdir():
        if path.is_dir() or path.name == "model_index.json":
            (folder / path.name).symlink_to(path)
    return folder


def test_linked_components_are_exported_and_count(tmp_path: Path) -> None:
    linked = link_components(tmp_path / "linked")
    copied = tmp_path / "copied"
    shutil.copytree(linked, copied, symlinks=False)
    assert weights_hash(linked) == weights_hash(copied)
    part = tmp_path / "part"
    _start_or_resume(part, Source.open(linked), {"weights": weights_hash(linked)})
    weights = sorted(path.relative_to(linked) for path in linked.glob("*/*.safetensors"))
    assert len(weights) == 8
    assert sorted(path.relative_to(part) for path in part.rglob("*.safetensors")) == weights
    assert not any(path.is_symlink() for path in part.rglob("*"))
    before = weights_hash(copied)
    config = copied / "vae" / "config.json"
    config.write_text(config.read_text().replace("scaling_factor", "scaling_factor_of_old"))
    assert weights_hash(copied) != before
    before = weights_hash(copied)
    merges = next((copied / "tokenizer").glob("merges*"))
    merges.write_bytes(merges.read_bytes()[:-10])
    assert weights_hash(copied) != before  # the vocabulary is in the bundle, too


def test_links_that_lead_nowhere_or_in_circles_are_named(tmp_path: Path) -> None:
    linked = link_components(tmp_path / "linked")
    (linked / "again").symlink_to(linked)
    with pytest.raises(ValueError, match="again: a link that leads back"):
        weights_hash(linked)
    (linked / "again").unlink()
    (linked / "vae").unlink()
    (linked / "vae").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="vae: a link that leads nowhere"):
        weights_hash(linked)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no weights"):
        weights_hash(tmp_path / "empty")


def test_weights_are_kept_once(bundle: Bundle) -> None:
    sizes = {path.name: path.stat().st_size for path in bundle.folder.glob("*.onnx")}
    weights = sum(path.stat().st_size for path in bundle.folder.rglob("*.safetensors"))
    assert len(sizes) == len(NAMES)
    assert sum(sizes.values()) < 0.1 * weights


@pytest.mark.slow
def test_a_cut_export_goes_on_and_gives_the_same_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From nano, cut after the second stage; the second run makes the others and keeps those."""
    made: list[str] = []

    def watch(done: int, total: int, name: str) -> None:
        made.append(name)
        if len(made) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt):
        export_bundle(NANO_FOLDER, out, progress=watch)
    assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".bundle.part/*.onnx")}
    assert len(kept) == 2
    export_bundle(NANO_FOLDER, out)
    assert {(out / path.name).stat().st_mtime_ns for path in kept} == set(kept.values())
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}
    for path in bundle.folder.glob("*.onnx"):
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_a_full_size_decoder_is_exported_within_memory(tmp_path: Path, record_property: Callable[..., None]) -> None:
    """Stable Diffusion 2.1's VAE with random weights, in a process of its own; 20 GB is what the project allows."""
    script = f"""
import resource
from pathlib import Path
import numpy as np
from diffbody_ref.components import COMPONENT_CLASSES, build_component
from diffbody_ref.pipeline import DiffBodyPipeline
from export.gradient import gradient_graph
from export.onnx import export_onnx
from export.source import Source
from diffbody_ref.stages import bind_stages
from export.weights import WeightStore
from runtime.engines import EngineConfig
from runtime.bundle import StageEntry
from runtime.engines.onnxruntime import OnnxRuntimeEngine
folder = Path({str(tmp_path)!r})
parts = {{name: build_component(name, "sd21" if name == "vae" else "nano") for name in COMPONENT_CLASSES}}
parts["vae"].save_pretrained(folder / "vae")
stage = next(s for s in bind_stages(DiffBodyPipeline(**parts)) if s.name == "vae_decoder")
path = export_onnx(stage, folder / "vae_decoder.onnx", WeightStore(folder))
assert path.stat().st_size < 2_000_000, "the weights are the folder's"
feed = stage.example({{"batch": 1, "height": 2, "width": 1}})
entry = StageEntry(stage.signature.inputs, stage.signature.outputs, stage.signature.sizes, {{}})
found, wanted = OnnxRuntimeEngine(entry, path).infer(feed)["picture"], stage.reference(feed)["picture"]
assert np.linalg.norm(found - wanted) < 1e-4 * np.linalg.norm(wanted)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    gigabytes = float(done.stdout.split()[-1])
    record_property("peak_memory_gb", gigabytes)
    print(f"peak memory: {gigabytes:.1f} GB")
    assert gigabytes < 20


def test_a_bundle_needs_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    script = f"""
import sys
sys.argv = ["diffbody"]
from diffbody.cli import main
try:
    main(["restore", {str(SAMPLES / "synthetic_1.jpg")!r}, "--bundle", {str(bundle.folder)!r},
                   "-o", {str(tmp_path / "out.png")!r}, "--steps", "2", "--compare", "--intermediates"])
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = [name for name in ("torch", "diffusers", "transformers", "onnx") if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").is_file()


def change_a_byte(folder: Path) -> None:
    path = folder / "pose.float32.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / MANIFEST).read_text())
        change(values)
        (folder / MANIFEST).write_text(json.dumps(values))

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change_a_byte, "pose.float32.onnx: differs from the manifest"),
        (lambda folder: (folder / "pose.float32.onnx").unlink(), "pose.float32.onnx: missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "not a bundle"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "broken manifest"),
        (edit(lambda values: values.update(schema=99)), "schema is 99, this version reads 1"),
        (edit(lambda values: values.pop("geometry")), "broken manifest"),
        (edit(lambda values: values["files"].update({"../x": {"size": 1, "sha256": ""}})), "outside of the bundle"),
        (edit(lambda values: values["stages"]["pose"]["graphs"].update(a="/etc/passwd")), "not among its files"),
    ],
)
def test_a_spoilt_bundle_is_refused(
    bundle: Bundle, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.folder, folder)
    spoil(folder)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "'crops' is missing"),
        ({"crops": np.zeros((1, 3, 5, 5), np.float32)}, "'crops' must be float32"),
        ({"crops": np.zeros((1, 3, 192, 144))}, "not float64"),
        ({"crops": np.zeros((1, 3, 192, 144), np.float32), "x": np.zeros(1)}, "unknown input 'x'"),
    ],
)
def test_a_wrong_feed_is_named(restorer: Restorer, feed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restorer.infer("pose", feed)


def test_low_memory_holds_one_engine(bundle: Bundle, restorer: Restorer) -> None:
    picture = read_image(SAMPLES / "synthetic_1.jpg")
    thrifty = Restorer.open(bundle, EngineConfig(low_memory=True))
    result = thrifty.restore(picture, num_inference_steps=1, body_guidance_scale=0.0)
    same = restorer.restore(picture, num_inference_steps=1, body_guidance_scale=0.0)
    assert np.array_equal(result.pixels, same.pixels)
    assert len(thrifty.infer.__self__._engines) == 1  # type: ignore[attr-defined]


def test_a_provider_that_is_not_there_is_said(bundle: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(ValueError, match="cannot use cuda"):
        OnnxRuntimeEngine.open(bundle, "pose", EngineConfig(device="cuda"))
