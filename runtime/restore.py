"""A degraded picture of people in, a restored one out: `diffbody_ref.pipeline`, on a bundle's engines and numpy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffbody_ref.ops.drawing import draw_pose
from diffbody_ref.ops.images import ImageInput, Picture, as_picture, to_image, write_image
from diffbody_ref.ops.keypoints import unseen
from diffbody_ref.ops.metadata import NO_METADATA, Metadata
from diffbody_ref.ops.noise import check_seed, philox_noise
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.pose import crop_people, decode_simcc, letterbox, person_crop
from diffbody_ref.ops.processing import Sizes, postprocess, preprocess, reconstruct, resize_alpha, to_pixels
from diffbody_ref.ops.prompts import PromptTokenizer, check_text, prompt_notices, prompts_read
from diffbody_ref.ops.results import Intermediates, guidance_notices, notices
from diffbody_ref.ops.samplers import StepInfo, initial_latents, make_schedule
from diffbody_ref.ops.tiling import Cells, in_tiles
from runtime.bundle import Bundle, BundleError, Manifest, shorten
from runtime.engines import EngineConfig, Infer, Observer
from runtime.engines.pool import EnginePool
from runtime.steps import Sampling, Target, View, advance, constant, views

EMBEDDINGS = 64  # prompts whose embeddings are kept


@dataclass(frozen=True)
class Restoration:
    """A restored picture of the output size H×W.

    Attributes:
        pixels: float32 (H, W, 3), RGB in [0, 1], not multiplied by alpha.
        alpha: float32 (H, W) in [0, 1], 1 is opaque: the input's transparency; None where the input has none.
        intermediates: what the stages found on the way.
        notices: what whoever asked should know, a line each, such as that no person was found.
        metadata: what the input's file says besides its pixels.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    intermediates: Intermediates
    notices: list[str]
    metadata: Metadata = NO_METADATA

    @property
    def image(self) -> Image.Image:
        """The picture as Pillow's, 8 bits a channel: RGB, or RGBA where there is alpha."""
        return to_image(self.pixels, self.alpha)

    def save(
        self,
        path: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        quality: int | None = None,
        keep_metadata: bool = True,
    ) -> list[str]:
        """Write the picture to a file (png, jpg, webp, avif or tiff), whole or not at all.

        Args:
            path: of the file; its suffix says the format.
            overwrite: replace a file that exists.
            quality: 1 to 100, of the formats that are not lossless; None is the format's own.
            keep_metadata: also write EXIF, XMP and resolution of the input's file.

        Returns:
            What the file does not hold, a sentence each.

        Raises:
            ImageError: an unknown suffix, a place that cannot be written to, or a file that exists and is not to be
                overwritten.
        """
        metadata = self.metadata if keep_metadata else None
        return write_image(path, self.pixels, self.alpha, overwrite, quality=quality, metadata=metadata)


@dataclass(frozen=True)
class People:
    """The people in a picture.

    Attributes:
        boxes: float32 (N, 5), x0, y0, x1, y1 in pixels and the score.
        keypoints: float32 (N, 133, 3), x, y in pixels and a score.
        pose: float32 (1, 3, H, W) in [0, 1], the drawn poses.
    """

    boxes: np.ndarray
    keypoints: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class Parts:
    """The body parts of the people in a picture.

    Attributes:
        attention: float32 (1, K+1, H, W) in [0, 1], the part maps of all people over one another.
        target: what body guidance aims at.
    """

    attention: np.ndarray
    target: Target


class Restorer:
    """The method's steps 1 to 6: `restore` does them one after the other, a server each in a model of its own.

    Pictures between the steps are float32 (1, 3, H, W) of the padded working size, latents (1, C, h, w).

    Args:
        manifest: the bundle's.
        infer: runs a stage.
        tokenize: splits prompts into chunks of the bundle's token ids.
    """

    def __init__(self, manifest: Manifest, infer: Infer, tokenize: PromptTokenizer) -> None:
        self.manifest, self.infer, self.tokenize = manifest, infer, tokenize
        self.geometry, self.settings = manifest.geometry, manifest.settings
        self.noise_process = manifest.noise_process
        self._embed = lru_cache(EMBEDDINGS)(self._encode_prompt)

    @classmethod
    def open(
        cls, bundle: Bundle | str | Path, config: EngineConfig | None = None, observers: Sequence[Observer] = ()
    ) -> Restorer:
        """What restores pictures on a bundle's engines.

        Args:
            bundle: an opened one, or its folder.
            config: how its stages are run.
            observers: called after every inference, see `runtime.engines.Observer`.

        Raises:
            BundleError: the folder is no usable bundle.
            ValueError: the bundle lacks what the engines need, or the machine does.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        return cls(bundle.manifest, EnginePool(bundle, config, observers).infer, load_tokenizer(bundle))

    def restore(
        self,
        image: ImageInput,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        *,
        seed: int = 0,
        callback: Callable[[StepInfo], None] | None = None,
        **options: Any,
    ) -> Restoration:
        """Restore one picture.

        Args:
            image: path of a picture file, a PIL picture, or an array, float (H, W, 3) in [0, 1].
            prompt: what the picture shows, from head to toe.
            negative_prompt: what the picture should not look like; needs a `guidance_scale` other than 1.
            seed: of the noise, from 0. The same seed gives the same picture.
            callback: called after each denoising step; an exception from it ends the restoration.
            options: attributes of `diffbody_ref.ops.options.RestoreOptions`; what is not given is the model's value.

        Raises:
            ValueError: a picture that cannot be read, an unknown option, or a value out of its range.
        """
        asked = self.settings.options(**options)
        check_seed(seed)
        prompt, negative_prompt = check_text(prompt or ""), check_text(negative_prompt or "", "negative_prompt")
        picture = as_picture(image)
        sizes = self.sizes(picture, asked)
        low = preprocess(picture, sizes)
        regression = self.regress(low, asked)
        people = self.find_people(regression, asked)
        parts = self.find_parts(regression, people.boxes)
        text = self.encode_text(prompt, negative_prompt, asked)
        z_r = self.encode(regression, asked)
        sampling = self.begin(z_r, people.pose, parts, text, asked, seed)
        while not sampling.done:
            (step,) = advance([sampling], self.infer, self.manifest)
            if callback is not None:
                callback(step)
        decoded = self.reconstruct(sampling.latents, z_r, regression, asked)
        pixels = postprocess(decoded, regression, sizes, asked)
        return Restoration(
            pixels=pixels,
            alpha=None if picture.alpha is None else resize_alpha(picture.alpha, *pixels.shape[:2]),
            intermediates=Intermediates.without_padding(
                sizes, regression, people.boxes, people.keypoints, people.pose, parts.attention, sampling.loss_curve
            ),
            notices=[
                *picture.notices,
                *guidance_notices(options, self.manifest.lacking),
                *self.notices(len(people.boxes), sampling, prompt, negative_prompt),
            ],
            metadata=picture.metadata,
        )

    def sizes(self, picture: Picture, options: RestoreOptions) -> Sizes:
        """What the picture is brought to."""
        return Sizes.plan(picture.pixels.shape[:2], options, self.settings, self.geometry.multiple)

    def regress(self, low: np.ndarray, options: RestoreOptions) -> np.ndarray:
        """r = SwinIR(y), eq. 2; y itself where the model has no regression network."""
        if "restorer" not in self.manifest.stages:
            return low
        return self._tiled("restorer", "picture", low, options, (1, 1))

    def find_people(self, regression: np.ndarray, options: RestoreOptions) -> People:
        """P of eq. 3; nobody where the options leave structure out, or the model has no detector."""
        nobody = People(np.zeros((0, 5), np.float32), unseen(0), np.zeros_like(regression))
        if not options.use_structure or "pose_detector" not in self.manifest.stages:
            return nobody
        boxes, keypoints = self.locate_people(to_pixels(regression))
        if not len(boxes):
            return nobody
        drawing = draw_pose(keypoints, *regression.shape[2:]).transpose(2, 0, 1)[None].astype(np.float32)
        return People(boxes, keypoints, drawing)

    def locate_people(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, 5) and keypoints (N, 133, 3) of the people in a picture, float32 (H, W, 3) in [0, 1].

        Without a pose network, keypoints are zeros.
        """
        boxes = self._detect(pixels)
        if not len(boxes) or "pose" not in self.manifest.stages:
            return boxes, unseen(len(boxes))
        crops, inverses = crop_people(pixels, boxes, self.geometry.pose_height, self.geometry.pose_width)
        scores = self.infer("pose", {"crops": crops})
        return boxes, decode_simcc(scores["simcc_x"], scores["simcc_y"], inverses)

    def find_parts(self, regression: np.ndarray, boxes: np.ndarray) -> Parts:
        """A of eq. 3, and φ and v of every person; nothing where the model has no part network."""
        height, width = regression.shape[2:]
        count = self.manifest.part_count
        attention = np.zeros((1, count + 1, height, width), np.float32)
        windows = [person_crop(box, height, width) for box in boxes]
        if not windows or "parts" not in self.manifest.stages:
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

    def encode_text(self, prompt: str, negative_prompt: str, options: RestoreOptions) -> np.ndarray:
        """c, (1, L, D), and where classifier-free guidance is on also the negative prompt's, (2, L, D).

        L is the model's text length for each chunk that the longer prompt needs; see `diffbody_ref.ops.prompts`.
        """
        prompts = prompts_read(prompt, negative_prompt, options.guidance_scale)
        chunks = max(len(self.tokenize(each).ids) for each in prompts)
        return np.concatenate([self._embed(each, chunks) for each in prompts])

    def encode(self, regression: np.ndarray, options: RestoreOptions) -> np.ndarray:
        """z_r = E(r)."""
        return self._tiled("vae_encoder", "picture", regression, options, (1, self.geometry.factor))

    def begin(
        self, z_r: np.ndarray, pose: np.ndarray, parts: Parts, text: np.ndarray, options: RestoreOptions, seed: int
    ) -> Sampling:
        """A sampling that has all its steps before it; `runtime.steps.advance` does them."""
        noise = lambda step: philox_noise(seed, step, z_r.shape[1:])[None]  # noqa: E731
        schedule = make_schedule(options.sampler, options.num_inference_steps, options.strength, self.noise_process)
        start = initial_latents(schedule, z_r, noise, options.strength)
        maps = np.concatenate([pose * options.use_pose, parts.attention * options.use_attention], axis=1)
        condition = np.concatenate([z_r, _block_means(maps, self.geometry.factor)], axis=1)
        guided = options.body_guidance_scale > 0 and len(parts.target.windows)
        seen = views(parts.target, z_r.shape[2:], options.tile_size, self.geometry) if guided else []
        return Sampling(schedule, start, noise, condition, text, options, seen)

    def notices(self, people: int, sampling: Sampling, prompt: str, negative_prompt: str) -> list[str]:
        """What whoever asked should know of a restoration, one line each.

        Args:
            people: how many were found.
            sampling: of the restoration.
            prompt: as it was given.
            negative_prompt: as it was given.
        """
        options = sampling.options
        told = notices(people, guided_people(sampling.views), options, self.manifest.lacking)
        return told + prompt_notices(prompt, negative_prompt, options.guidance_scale, self.tokenize)

    def decode(self, latents: np.ndarray, options: RestoreOptions) -> np.ndarray:
        """D(z)."""
        return self._tiled("vae_decoder", "latents", latents, options, (self.geometry.factor, 1), self.geometry.factor)

    def reconstruct(
        self, latents: np.ndarray, z_r: np.ndarray, regression: np.ndarray, options: RestoreOptions
    ) -> np.ndarray:
        """D(z_0), to which the options may add the residual; see `ops.processing.reconstruct`."""
        return reconstruct(lambda z: self.decode(z, options), latents, z_r, regression, options)

    def _detect(self, pixels: np.ndarray) -> np.ndarray:
        """People in a picture: float32 (N, 5), x0, y0, x1, y1 in pixels and the score, best first."""
        square, ratio = letterbox(pixels, self.geometry.detector_size)
        feed = {"square": square[None], "ratio": np.array([ratio], np.float32)}
        boxes = self.infer("pose_detector", feed)["boxes"][0]
        return boxes[boxes[:, 4] > 0]

    def _encode_prompt(self, prompt: str, chunks: int) -> np.ndarray:
        text = self.infer("text_encoder", {"token_ids": self.tokenize(prompt, chunks).ids})["text"]
        return constant(text.reshape(1, -1, text.shape[2]))

    def _tiled(
        self,
        stage: str,
        name: str,
        inputs: np.ndarray,
        options: RestoreOptions,
        factor: tuple[int, int],
        cell: int = 1,
    ) -> np.ndarray:
        """A stage of one input and one output, tile by tile on large pictures."""

        def one_tile(cells: Cells) -> np.ndarray:
            return next(iter(self.infer(stage, {name: np.ascontiguousarray(inputs[cells])}).values()))

        return in_tiles(one_tile, inputs.shape[2:], options.tile_size, self.geometry.multiple, factor, cell)


def guided_people(seen: Sequence[View]) -> int:
    """How many people body guidance looks at."""
    return sum(len(view.target.windows) for view in seen)


def load_tokenizer(bundle: Bundle) -> PromptTokenizer:
    """The bundle's tokenizer; it splits prompts into as many chunks as the bundle's denoiser reads.

    Raises:
        BundleError: the tokenizer's files, or what the manifest says of it, are no tokenizer.
    """
    from tokenizers import Tokenizer

    manifest, folder = bundle.manifest, bundle.folder / "tokenizer"
    chunks = manifest.stages["denoiser"].sizes.get("chunks")
    try:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [line for line in merges if line and not line.startswith("#version")]
        model = {**manifest.tokenizer["model"], "vocab": vocabulary, "merges": merges}
        tokenizer = Tokenizer.from_str(json.dumps({**manifest.tokenizer, "model": model}))
        pad_id = tokenizer.padding["pad_id"]
        return PromptTokenizer(tokenizer, manifest.geometry.text_length, pad_id, chunks.most if chunks else 1)
    except Exception as error:  # the library's errors have no common class
        raise BundleError(f"{folder}: no tokenizer: {shorten(error)}; export or download the bundle again") from None


def _block_means(maps: np.ndarray, factor: int) -> np.ndarray:
    """(1, C, H, W) to the means of blocks of factor × factor pixels."""
    batch, channels, height, width = maps.shape
    blocks = maps.reshape(batch, channels, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(3, 5), dtype=np.float32)
