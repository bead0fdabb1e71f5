"""Random views of labelled people, to train the structure networks: mirrored, rotated, recoloured, degraded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffbody_ref.data.boxes import labelled_box
from diffbody_ref.data.datasets import Person
from diffbody_ref.ops.keypoints import FLIP
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.crops import degraded_pair

DEGRADED_SHARE = 0.3  # the networks are applied to regression results, which are softer than clean pictures
ROTATED_SHARE = 0.5
MAX_ROTATION = 15.0  # degrees: cameras are held straight, but bodies lean
MIN_SIDE = 8  # smallest side of a person's box in pixels
RECOLOURED_SHARE = 0.5
MAX_GAIN = 0.2  # largest deviation of a colour channel's gain from 1
MAX_LOG_GAMMA = 0.4  # largest absolute logarithm of the gamma


@dataclass(frozen=True)
class View:
    """A picture of a person and its labels.

    Attributes:
        picture: float32 (H, W, 3), RGB in [0, 1].
        box: float32 (4,): x0, y0, x1, y1 of the visible person in pixels.
        keypoints: float32 (133, 3), as `Person` has them, or None.
        parts: uint8 (H, W), or None.
    """

    picture: np.ndarray
    box: np.ndarray
    keypoints: np.ndarray | None
    parts: np.ndarray | None


def random_view(person: Person, rng: np.random.Generator, config: TrainConfig) -> View:
    """A random view of a person whose box is known, as one sample of a run."""
    assert person.box is not None  # see TrainingStage.needs
    picture, box, keypoints, parts = person.picture, person.box, person.keypoints, person.parts
    if rng.random() < 0.5:
        picture, box, keypoints, parts = _mirrored(picture, box, keypoints, parts)
    if rng.random() < ROTATED_SHARE and parts is not None:
        degrees = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
        picture, box, keypoints, parts = _rotated(degrees, picture, box, keypoints, parts)
    if rng.random() < RECOLOURED_SHARE:
        picture = _recoloured(picture, rng)
    if rng.random() < DEGRADED_SHARE:
        pixels = degraded_pair(np.ascontiguousarray(picture), rng, config)[1]
    else:
        pixels = picture.astype(np.float32) / 255.0
    return View(pixels, box, keypoints, parts)


def jittered(box: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """The box with each edge moved by up to `amount` times the box's length in that direction."""
    sides = np.array([box[2] - box[0], box[3] - box[1]] * 2, np.float32)
    return box + sides * rng.uniform(-amount, amount, 4).astype(np.float32)


def _mirrored(
    picture: np.ndarray, box: np.ndarray, keypoints: np.ndarray | None, parts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The mirror image of a view: picture, box, keypoints and parts."""
    last = picture.shape[1] - 1
    if keypoints is not None:
        keypoints = keypoints[np.asarray(FLIP)].copy()
        keypoints[:, 0] = last - keypoints[:, 0]
    box = np.array([last - box[2], box[1], last - box[0], box[3]], np.float32)
    return picture[:, ::-1], box, keypoints, None if parts is None else parts[:, ::-1]


def _rotated(
    degrees: float, picture: np.ndarray, box: np.ndarray, keypoints: np.ndarray | None, parts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """A view rotated counter-clockwise about the box's centre; corners are black, the new box is that of the parts.

    The view is returned unchanged if next to nothing of the person would be left.
    """
    centre = (box[:2] + box[2:]) / 2
    pivot = (float(centre[0]) + 0.5, float(centre[1]) + 0.5)  # Pillow's pixel centres are at halves
    labels = np.asarray(Image.fromarray(np.ascontiguousarray(parts)).rotate(degrees, center=pivot))
    new_box = labelled_box(labels)
    if (new_box[2:] - new_box[:2]).min() < MIN_SIDE:
        return picture, box, keypoints, parts
    image = Image.fromarray(np.ascontiguousarray(picture))
    rotated = np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, center=pivot))
    if keypoints is not None:
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        keypoints = keypoints.copy()
        keypoints[:, :2] = (keypoints[:, :2] - centre) @ np.array(
            [[cosine, -sine], [sine, cosine]], np.float32
        ) + centre
    return rotated, new_box, keypoints, labels


def _recoloured(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A uint8 picture with another exposure, contrast and white balance: one gamma, then a gain for each channel."""
    gamma = np.exp(rng.uniform(-MAX_LOG_GAMMA, MAX_LOG_GAMMA))
    gains = rng.uniform(1 - MAX_GAIN, 1 + MAX_GAIN, 3)
    levels = (np.arange(256) / 255.0) ** gamma
    table = np.clip(255.0 * gains * levels[:, None] + 0.5, 0, 255).astype(np.uint8)
    return np.stack([table[picture[..., channel], channel] for channel in range(3)], axis=-1)
