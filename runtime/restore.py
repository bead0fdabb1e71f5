"""A degraded picture of people in, a restored one out: `diffbody_ref.pipeline`, on a bundle's engines and numpy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from diffbody_ref.ops.colour import match_colour
from diffbody_ref.ops.drawing import draw_pose
from diffbody_ref.ops.images import ImageInput, Picture, as_picture, crop, pad_to_multiple, resize, working_size
from diffbody_ref.ops.noise import check_seed, philox_noise
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.pose import crop_people, decode_simcc, letterbox, person_crop
from diffbody_ref.ops.results import NO_PERSON, Intermediates
from diffbody_ref.ops.tiling import blend, plan_tiles, tile_weights
from runtime.bundle import Bundle, Manifest
from runtime.sampling import Guidance, Step, initial_latents, sample, sampler_schedule

EMBEDDINGS = 64  # prompts whose embeddings are kept
OVERLAP = 0.125  # of a tile's side, shared by neighbours

Infer = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]
"""(stage, inputs by name) → outputs by name."""

Cells = tuple[Any, slice, slice]
"""An index of (…, H, W)."""

Tokenize = Callable[[str], np.ndarray]
"""Prompt → token ids, int64 (text_length,)."""


@dataclass
class Restored:
    """A restored picture, float32 (H, W, 3) in [0, 1], what was found on the way, and notices for whoever asked."""

    pixels: np.ndarray
    found: Intermediates
    notices: list[str]


@dataclass
class _Job:
    """A picture on its way through the stages; arrays are (1, C, H, W) of the padded working size."""

    picture: Picture
    size: tuple[int, int]
    regression: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    crops: list[tuple[int, int, int, int]]
    pose: np.ndarray
    attention: np.ndarray
    embeddings: np.ndarray
    visibility: np.ndarray
    z_r: np.ndarray
    condition: np.ndarray
    notices: list[str] = field(default_factory=list)


class Restorer:
    """DESIGN §1, steps 1 to 6, of one picture at a time.

    Args:
        manifest: of the bundle.
        infer: runs a stage.
        tokenize: the bundle's tokenizer.
    """

    def __init__(self, manifest: Manifest, infer: Infer, tokenize: Tokenize) -> None:
        self.manifest, self.infer, self.tokenize = manifest, infer, tokenize
        self.geometry, self.settings = manifest.geometry, manifest.settings
        self._embed = lru_cache(EMBEDDINGS)(self._encode_prompt)

    def options(self, **asked: Any) -> RestoreOptions:
        """`RestoreOptions` of a call: what was not asked for (None) is the bundle's value, or the class's.

        Raises:
            ValueError: an unknown option, or a value out of its range.
        """
        names = [f.name for f in dataclasses.fields(RestoreOptions)]
        if unknown := asked.keys() - set(names):
            raise ValueError(f"unknown option {min(unknown)!r}; known are {', '.join(names)}")
        preset = {name: value for name, value in self.settings.items() if name in names}
        return RestoreOptions(**{**preset, **{name: value for name, value in asked.items() if value is not None}})

    def restore(
        self,
        image: ImageInput,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        *,
        seed: int = 0,
        callback: Callable[[Step], None] | None = None,
        **options: Any,
    ) -> Restored:
        """Restore a picture; arguments as those of `diffbody_ref.pipeline.DiffBodyPipeline`.

        Raises:
            ValueError: a value out of its range.
        """
        settings = self.options(**options)
        job = self._prepare(as_picture(image), settings)
        text = self._encode_text([prompt or ""] + [negative_prompt or ""] * (settings.guidance_scale != 1.0))
        seed = check_seed(seed)
        noise = lambda step: philox_noise(seed, step, job.z_r.shape[1:])[None]  # noqa: E731
        curve: list[tuple[int, float]] = []

        def after_step(done: Step) -> None:
            if done.loss is not None:
                curve.append((done.timestep, float(done.loss[0])))
            if callback is not None:
                callback(done)

        schedule = sampler_schedule(settings.sampler, settings.num_inference_steps, settings.strength)
        start = initial_latents(job.z_r, schedule, noise, settings.strength)
        # Not to be written to, so that an engine on a GPU copies them there once (see runtime.engines.onnxruntime).
        text, condition = constant(text), constant(np.repeat(job.condition, len(text), axis=0))
        denoise = lambda z, t: self._denoise(z, t, condition, text, settings)  # noqa: E731
        z0 = sample(settings.sampler, denoise, start, schedule, noise, self._guidance(job, settings), after_step)
        return self._finish(job, z0, curve, settings)

    def _prepare(self, picture: Picture, settings: RestoreOptions) -> _Job:
        """Steps 1 to 4: r, P, A and z_r."""
        height, width = picture.pixels.shape[:2]
        if settings.upscale is not None:
            height, width = (max(16, round(side * settings.upscale)) for side in (height, width))
        base = self.settings["base_height"], self.settings["base_width"]
        size = working_size(height, width, *base, self.geometry.multiple)
        pixels = pad_to_multiple(resize(picture.pixels, size.height, size.width), self.geometry.multiple)
        low = np.ascontiguousarray(np.clip(pixels, 0.0, 1.0).transpose(2, 0, 1)[None])
        regression = self._tiled("restorer", "picture", low, settings, (1, 1))
        z_r = self._tiled("vae_encoder", "picture", regression, settings, (1, self.geometry.factor))
        structure = self._structure(regression) if settings.use_structure else self._no_structure(regression, [])
        maps = np.concatenate([structure["pose"], structure["attention"]], axis=1)
        condition = np.concatenate([z_r, _block_means(maps, self.geometry.factor)], axis=1)
        return _Job(picture, (size.height, size.width), regression, z_r=z_r, condition=condition, **structure)

    def _structure(self, regression: np.ndarray) -> dict[str, Any]:
        """Equation 3 of every person: poses drawn, part maps laid over one another; and what guidance aims at."""
        height, width = regression.shape[2:]
        pixels = regression[0].transpose(1, 2, 0)
        boxes = self._detect(pixels)
        if not len(boxes):
            return self._no_structure(regression, [NO_PERSON])
        crops, inverses = crop_people(pixels, boxes, self.geometry.pose_height, self.geometry.pose_width)
        scores = self.infer("pose", {"crops": crops})
        keypoints = decode_simcc(scores["simcc_x"], scores["simcc_y"], inverses)
        drawing = draw_pose(keypoints, height, width).transpose(2, 0, 1)[None].astype(np.float32)
        attention = np.zeros((1, len(self.geometry.part_names) + 1, height, width), np.float32)
        windows = [person_crop(box, height, width) for box in boxes]
        features = []
        for x0, y0, x1, y1 in windows:
            output = self.infer("parts", {"person": np.ascontiguousarray(regression[..., y0:y1, x0:x1])})
            window = attention[..., y0:y1, x0:x1]
            np.maximum(window, output["attention"], out=window)
            features.append((output["embeddings"], output["visibility"]))
        embeddings, visibility = (np.concatenate(column) for column in zip(*features, strict=True))
        return {
            "boxes": boxes,
            "keypoints": keypoints,
            "crops": windows,
            "pose": drawing,
            "attention": attention,
            "embeddings": embeddings,
            "visibility": visibility,
        }

    def _no_structure(self, regression: np.ndarray, notices: list[str]) -> dict[str, Any]:
        parts = len(self.geometry.part_names)
        return {
            "boxes": np.zeros((0, 5), np.float32),
            "keypoints": np.zeros((0, 133, 3), np.float32),
            "crops": [],
            "pose": np.zeros_like(regression),
            "attention": np.zeros((1, parts + 1, *regression.shape[2:]), np.float32),
            "embeddings": np.zeros((0, parts, 1), np.float32),
            "visibility": np.zeros((0, parts), np.float32),
            "notices": notices,
        }

    def _detect(self, pixels: np.ndarray) -> np.ndarray:
        """People in a picture: float32 (N, 5), x0, y0, x1, y1 in pixels and the score, best first."""
        square, ratio = letterbox(pixels, self.geometry.detector_size)
        feed = {"square": square[None], "ratio": np.array([ratio], np.float32)}
        boxes = self.infer("pose_detector", feed)["boxes"][0]
        return boxes[boxes[:, 4] > 0]

    def _encode_text(self, prompts: Sequence[str]) -> np.ndarray:
        return np.concatenate([self._embed(prompt) for prompt in prompts])

    def _encode_prompt(self, prompt: str) -> np.ndarray:
        return self.infer("text_encoder", {"token_ids": self.tokenize(prompt)[None]})["text"]

    def _denoise(
        self, z: np.ndarray, t: int, condition: np.ndarray, text: np.ndarray, settings: RestoreOptions
    ) -> np.ndarray:
        """ε_θ with classifier-free guidance, ε_∅ + w·(ε_c − ε_∅) (Ho & Salimans 2022), tiled on large latents."""
        count = len(text)
        timesteps = np.full(count, t, np.int64)

        def one_tile(cells: Cells) -> np.ndarray:
            feed = {"latents": np.repeat(z[cells], count, axis=0), "condition": np.ascontiguousarray(condition[cells])}
            noise = self.infer("denoiser", {**feed, "timesteps": timesteps, "text": text})["noise"]
            if count == 1:
                return noise
            with_text, without = noise[:1], noise[1:]
            return without + np.float32(settings.guidance_scale) * (with_text - without)

        return self._tiles(one_tile, z.shape[2:], settings, (1, 1), self.geometry.factor)

    def _guidance(self, job: _Job, settings: RestoreOptions) -> Guidance | None:
        """Eq. 6 against the regression result; None where it is off or nobody was found."""
        if settings.body_guidance_scale == 0 or not job.crops:
            return None
        feed = {
            "embeddings": constant(job.embeddings),
            "visibility": constant(job.visibility),
            "windows": constant(np.array(job.crops, np.float32)),
            "owners": constant(np.ones((len(job.crops), 1), np.float32)),
            "scale": constant(np.array([settings.body_guidance_scale], np.float32)),
        }

        def guide(z0: np.ndarray, t: int, step: int) -> tuple[np.ndarray, np.ndarray | None]:
            active = settings.body_guidance_stop < t < settings.body_guidance_start
            if not active or step % settings.body_guidance_every:
                return z0, None
            result = self.infer("guidance", {"latents": z0, **feed})
            return z0 - result["gradient"], result["loss"]

        return guide

    def _finish(self, job: _Job, z0: np.ndarray, curve: list[tuple[int, float]], settings: RestoreOptions) -> Restored:
        """Step 6: decode, correct the colours against r, bring to the asked size."""
        decoded = self._tiled("vae_decoder", "latents", z0, settings, (self.geometry.factor, 1), self.geometry.factor)
        height, width = job.size
        regression = crop(_pixels(job.regression), height, width)
        pixels = match_colour(crop(_pixels(decoded), height, width), regression, settings.colour_fix)
        if settings.upscale is not None:
            asked_height, asked_width = (
                max(1, round(side * settings.upscale)) for side in job.picture.pixels.shape[:2]
            )
            pixels = resize(pixels, asked_height, asked_width)
        found = Intermediates(
            regression=regression,
            boxes=job.boxes,
            keypoints=job.keypoints,
            pose=crop(_pixels(job.pose), height, width),
            attention=job.attention[0, :, :height, :width],
            loss_curve=curve,
        )
        return Restored(np.clip(pixels, 0.0, 1.0).astype(np.float32), found, job.notices)

    def _tiled(
        self,
        stage: str,
        name: str,
        inputs: np.ndarray,
        settings: RestoreOptions,
        factor: tuple[int, int],
        cell: int = 1,
    ) -> np.ndarray:
        """A stage of one input and one output, tile by tile on large pictures."""

        def one_tile(cells: Cells) -> np.ndarray:
            return next(iter(self.infer(stage, {name: np.ascontiguousarray(inputs[cells])}).values()))

        return self._tiles(one_tile, inputs.shape[2:], settings, factor, cell)

    def _tiles(
        self,
        network: Callable[[Cells], np.ndarray],
        size: tuple[int, ...],
        settings: RestoreOptions,
        factor: tuple[int, int],
        cell: int = 1,
    ) -> np.ndarray:
        """`network` of all cells, in overlapping tiles where the size is larger than the settings' tile size.

        Args:
            network: what a tile of the inputs becomes.
            size: height and width of the inputs.
            factor: (up, down): the output's size over the inputs' is up/down.
            cell: pixels per cell of the inputs.
        """
        assert settings.tile_size is not None  # the bundle's, see options()
        step = self.geometry.multiple // cell
        side = max(1, settings.tile_size // self.geometry.multiple) * step
        height, width = size
        if height <= side and width <= side:
            return network((..., slice(None), slice(None)))
        tiles = plan_tiles(height, width, side, side, max(step, int(side * OVERLAP) // step * step), step)
        up, down = factor
        scaled = [tile.enlarged(up) if down == 1 else tile.reduced(down) for tile in tiles]
        patches = (network((..., *tile.slices)) for tile in tiles)
        return blend(patches, scaled, tile_weights(scaled), channels_last=False)


def load_tokenizer(bundle: Bundle) -> Tokenize:
    """The bundle's tokenizer; prompts are cut or padded to the manifest's length."""
    from tokenizers import Tokenizer

    folder = bundle.folder / "tokenizer"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [line for line in merges if line and not line.startswith("#version")]
    frame = bundle.manifest.tokenizer
    model = {**frame["model"], "vocab": vocabulary, "merges": merges}
    tokenizer = Tokenizer.from_str(json.dumps({**frame, "model": model}))
    return lambda prompt: np.array(tokenizer.encode(prompt).ids, np.int64)


def constant(array: np.ndarray) -> np.ndarray:
    """The array, as one that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


def _pixels(array: np.ndarray) -> np.ndarray:
    """(1, 3, H, W) to (H, W, 3)."""
    return array[0].transpose(1, 2, 0)


def _block_means(maps: np.ndarray, factor: int) -> np.ndarray:
    """(1, C, H, W) to the means of blocks of factor × factor pixels."""
    batch, channels, height, width = maps.shape
    blocks = maps.reshape(batch, channels, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(3, 5), dtype=np.float32)
