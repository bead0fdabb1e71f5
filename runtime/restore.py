"""A degraded picture of people in, a restored one out: `diffbody_ref.pipeline`, on a bundle's engines and numpy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from runtime.bundle import Bundle, Manifest
from runtime.denoising import Sampling, Target, View, advance, constant, views
from runtime.engines import Infer
from runtime.sampling import Step, Trajectory, initial_latents, sampler_schedule
from runtime.tiles import Cells, in_tiles

EMBEDDINGS = 64  # prompts whose embeddings are kept

Tokenize = Callable[[str], np.ndarray]
"""Prompt → token ids, int64 (text_length,)."""


@dataclass
class Restored:
    """A restored picture, float32 (H, W, 3) in [0, 1], what was found on the way, and notices for whoever asked."""

    pixels: np.ndarray
    found: Intermediates
    notices: list[str]


@dataclass(frozen=True)
class Sizes:
    """Of one picture: height and width at work, with the padding, and of the output."""

    height: int
    width: int
    padded_height: int
    padded_width: int
    output_height: int
    output_width: int


@dataclass(frozen=True)
class People:
    """The people in a picture: boxes (N, 5), keypoints (N, 133, 3), and the poses drawn, (1, 3, H, W) in [0, 1]."""

    boxes: np.ndarray
    keypoints: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class Parts:
    """Part maps of all people over one another, (1, K+1, H, W); and of each, what body guidance aims at."""

    attention: np.ndarray
    target: Target


class Restorer:
    """The method's steps 1 to 6: `restore` does them one after the other, a server each in a model of its own.

    Pictures between the steps are float32 (1, 3, H, W) of the padded working size, latents (1, C, h, w).

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
        check_seed(seed)
        picture = as_picture(image)
        sizes = self.sizes(picture, settings)
        low = self.prepare(picture, sizes)
        regression = self.regress(low, settings)
        people = self.find_people(regression, settings)
        parts = self.find_parts(regression, people.boxes)
        text = self.encode_text(prompt or "", negative_prompt or "", settings)
        z_r = self.encode(regression, settings)
        sampling = self.begin(z_r, people.pose, parts, text, settings, seed)
        while not sampling.trajectory.done:
            (step,) = advance([sampling], self.infer, self.manifest)
            if callback is not None:
                callback(step)
        decoded = self.reconstruct(sampling.trajectory.latents, z_r, regression, settings)
        pixels = self.finish(decoded, regression, sizes, settings)
        found = Intermediates(
            regression=crop(_pixels(regression), sizes.height, sizes.width),
            boxes=people.boxes,
            keypoints=people.keypoints,
            pose=crop(_pixels(people.pose), sizes.height, sizes.width),
            attention=parts.attention[0, :, : sizes.height, : sizes.width],
            loss_curve=sampling.loss_curve,
        )
        return Restored(pixels, found, notices(people.boxes, sampling.views, settings))

    def sizes(self, picture: Picture, settings: RestoreOptions) -> Sizes:
        """What the picture is brought to."""
        height, width = output = picture.pixels.shape[:2]
        if settings.upscale is not None:
            height, width = (max(16, round(side * settings.upscale)) for side in (height, width))
            output = tuple(max(1, round(side * settings.upscale)) for side in output)
        base = self.settings["base_height"], self.settings["base_width"]
        size = working_size(height, width, *base, self.geometry.multiple)
        return Sizes(*size, *(output if settings.upscale is not None else size[:2]))

    def prepare(self, picture: Picture, sizes: Sizes) -> np.ndarray:
        """y at its padded working size, within [0, 1]."""
        pixels = pad_to_multiple(resize(picture.pixels, sizes.height, sizes.width), self.geometry.multiple)
        return np.ascontiguousarray(np.clip(pixels, 0.0, 1.0).transpose(2, 0, 1)[None])

    def regress(self, low: np.ndarray, settings: RestoreOptions) -> np.ndarray:
        """r = SwinIR(y), eq. 2."""
        return self._tiled("restorer", "picture", low, settings, (1, 1))

    def find_people(self, regression: np.ndarray, settings: RestoreOptions) -> People:
        """P of eq. 3; nobody where the settings leave structure out."""
        nobody = People(np.zeros((0, 5), np.float32), np.zeros((0, 133, 3), np.float32), np.zeros_like(regression))
        if not settings.use_structure:
            return nobody
        boxes, keypoints = self.locate_people(_pixels(regression))
        if not len(boxes):
            return nobody
        drawing = draw_pose(keypoints, *regression.shape[2:]).transpose(2, 0, 1)[None].astype(np.float32)
        return People(boxes, keypoints, drawing)

    def locate_people(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, 5) and keypoints (N, 133, 3) of the people in a picture, float32 (H, W, 3) in [0, 1]."""
        boxes = self._detect(pixels)
        if not len(boxes):
            return boxes, np.zeros((0, 133, 3), np.float32)
        crops, inverses = crop_people(pixels, boxes, self.geometry.pose_height, self.geometry.pose_width)
        scores = self.infer("pose", {"crops": crops})
        return boxes, decode_simcc(scores["simcc_x"], scores["simcc_y"], inverses)

    def find_parts(self, regression: np.ndarray, boxes: np.ndarray) -> Parts:
        """A of eq. 3, and φ and v of every person."""
        height, width = regression.shape[2:]
        count = len(self.geometry.part_names)
        attention = np.zeros((1, count + 1, height, width), np.float32)
        windows = [person_crop(box, height, width) for box in boxes]
        if not windows:
            empty = Target(*(np.zeros((0, *shape), np.float32) for shape in ((count, 1), (count,), (4,))))
            return Parts(attention, empty)
        features = []
        for x0, y0, x1, y1 in windows:
            output = self.infer("parts", {"person": np.ascontiguousarray(regression[..., y0:y1, x0:x1])})
            window = attention[..., y0:y1, x0:x1]
            np.maximum(window, output["attention"], out=window)
            features.append((output["embeddings"], output["visibility"]))
        embeddings, visibility = (np.concatenate(column) for column in zip(*features, strict=True))
        return Parts(
            attention, Target(constant(embeddings), constant(visibility), constant(np.array(windows, np.float32)))
        )

    def encode_text(self, prompt: str, negative_prompt: str, settings: RestoreOptions) -> np.ndarray:
        """c, (1, L, D), and where classifier-free guidance is on also the negative prompt's, (2, L, D)."""
        prompts = [prompt] + [negative_prompt] * (settings.guidance_scale != 1.0)
        return np.concatenate([self._embed(each) for each in prompts])

    def encode(self, regression: np.ndarray, settings: RestoreOptions) -> np.ndarray:
        """z_r = E(r)."""
        return self._tiled("vae_encoder", "picture", regression, settings, (1, self.geometry.factor))

    def begin(
        self, z_r: np.ndarray, pose: np.ndarray, parts: Parts, text: np.ndarray, settings: RestoreOptions, seed: int
    ) -> Sampling:
        """A sampling that has all its steps before it; `runtime.denoising.advance` does them."""
        noise = lambda step: philox_noise(seed, step, z_r.shape[1:])[None]  # noqa: E731
        schedule = sampler_schedule(settings.sampler, settings.num_inference_steps, settings.strength)
        start = initial_latents(z_r, schedule, noise, settings.strength)
        maps = np.concatenate([pose * settings.use_pose, parts.attention * settings.use_attention], axis=1)
        condition = np.concatenate([z_r, _block_means(maps, self.geometry.factor)], axis=1)
        assert settings.tile_size is not None  # the bundle's, see options()
        guided = settings.body_guidance_scale > 0 and len(parts.target.windows)
        looked_at = views(parts.target, z_r.shape[2:], settings.tile_size, self.geometry) if guided else []
        return Sampling(
            Trajectory(settings.sampler, schedule, start, noise),
            condition,
            text,
            settings,
            looked_at,
        )

    def decode(self, latents: np.ndarray, settings: RestoreOptions) -> np.ndarray:
        """D(z)."""
        return self._tiled("vae_decoder", "latents", latents, settings, (self.geometry.factor, 1), self.geometry.factor)

    def reconstruct(
        self, latents: np.ndarray, z_r: np.ndarray, regression: np.ndarray, settings: RestoreOptions
    ) -> np.ndarray:
        """D(z_0), to which the settings may add the residual, r − D(z_r): what the autoencoder loses of r."""
        decoded = self.decode(latents, settings)
        if settings.use_residual:
            decoded = decoded + (regression - self.decode(z_r, settings))
        return decoded

    def finish(self, decoded: np.ndarray, regression: np.ndarray, sizes: Sizes, settings: RestoreOptions) -> np.ndarray:
        """The colours corrected after r, at the asked size: float32 (H, W, 3) in [0, 1]."""
        ours, theirs = (crop(_pixels(picture), sizes.height, sizes.width) for picture in (decoded, regression))
        pixels = match_colour(ours, theirs, settings.colour_fix)
        if settings.upscale is not None:
            pixels = resize(pixels, sizes.output_height, sizes.output_width)
        return np.clip(pixels, 0.0, 1.0).astype(np.float32)

    def _detect(self, pixels: np.ndarray) -> np.ndarray:
        """People in a picture: float32 (N, 5), x0, y0, x1, y1 in pixels and the score, best first."""
        square, ratio = letterbox(pixels, self.geometry.detector_size)
        feed = {"square": square[None], "ratio": np.array([ratio], np.float32)}
        boxes = self.infer("pose_detector", feed)["boxes"][0]
        return boxes[boxes[:, 4] > 0]

    def _encode_prompt(self, prompt: str) -> np.ndarray:
        return constant(self.infer("text_encoder", {"token_ids": self.tokenize(prompt)[None]})["text"])

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

        assert settings.tile_size is not None  # the bundle's, see options()
        return in_tiles(one_tile, inputs.shape[2:], settings.tile_size, self.geometry.multiple, factor, cell)


def notices(found: np.ndarray, guided: Sequence[View], settings: RestoreOptions) -> list[str]:
    """What whoever asked should know of a restoration.

    Args:
        found: boxes of the people in the picture. guided: what body guidance looks at.
    """
    if settings.use_structure and not len(found):
        return [NO_PERSON]
    left_out = len(found) - sum(len(view.target.windows) for view in guided)
    if settings.body_guidance_scale > 0 and left_out:
        return [f"{left_out} of {len(found)} people are not guided: larger than a tile, {settings.tile_size} pixels"]
    return []


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


def _pixels(array: np.ndarray) -> np.ndarray:
    """(1, 3, H, W) to (H, W, 3)."""
    return array[0].transpose(1, 2, 0)


def _block_means(maps: np.ndarray, factor: int) -> np.ndarray:
    """(1, C, H, W) to the means of blocks of factor × factor pixels."""
    batch, channels, height, width = maps.shape
    blocks = maps.reshape(batch, channels, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(3, 5), dtype=np.float32)
