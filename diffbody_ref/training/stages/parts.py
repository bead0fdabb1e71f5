"""BPBReID: pixel and identity cross-entropy and a triplet loss on crops of people, several of each identity."""

from __future__ import annotations

import numpy as np
import torch

from diffbody_ref.models.parts import attention_map
from diffbody_ref.ops.images import resize
from diffbody_ref.ops.pose import person_crop
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.parts_losses import IdentityHead, PartLossConfig, part_losses
from diffbody_ref.training.stages.base import Stage, channels_first, degraded_pair, grid

DEGRADED_SHARE = 0.3  # the network meets regression results, which are softer than clean pictures
BOX_JITTER = 0.08  # of the box's sides


class PartsStage(Stage):
    """Trains `parts`; `identity_head` exists in training only. A batch should hold whole groups of views."""

    trained = ("parts",)
    needs = ("parts", "box", "identity")

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.identity_head = IdentityHead(len(self.people.identities), self.parts.settings)
        self.loss_config = PartLossConfig(pixel_weight=config.pixel_weight)
        groups: dict[int | None, list[int]] = {}
        for index in range(len(self.people)):
            groups.setdefault(self.people.identity(index), []).append(index)
        self.groups = list(groups.values())

    def order(self, epoch: int) -> np.ndarray:
        """Identities in random order, the views of each next to one another."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.groups))
        return np.concatenate([self.groups[i] for i in order]).astype(np.int64)

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng, person = self.random(serial), self.people[index]
        picture, parts, box = person.picture, person.parts, person.box
        assert parts is not None  # see needs
        assert box is not None
        if rng.random() < 0.5:
            picture, parts, box = picture[:, ::-1], parts[:, ::-1], _mirrored_box(box, picture.shape[1])
        x0, y0, x1, y1 = person_crop(_jittered(box, rng), *picture.shape[:2])
        labels = parts[y0:y1, x0:x1]
        if rng.random() < DEGRADED_SHARE:
            pixels = degraded_pair(np.ascontiguousarray(picture), rng, self.config)[1]
        else:
            pixels = picture.astype(np.float32) / 255.0
        height, width = self.parts.input_size
        pixels = np.clip(resize(pixels[y0:y1, x0:x1], height, width, method="bilinear"), 0, 1)
        rows, columns = np.arange(height) * (y1 - y0) // height, np.arange(width) * (x1 - x0) // width
        return {
            "picture": channels_first(pixels).astype(np.float32),
            "labels": labels[rows][:, columns].astype(np.int64),
            "identity": np.asarray(person.identity, np.int64),
        }

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = self.parts(batch["picture"])
        losses = part_losses(output, self.identity_head(output), batch["labels"], batch["identity"], self.loss_config)
        with torch.no_grad():
            predicted = attention_map(output, *batch["labels"].shape[1:])[:, :-1]
            labels = torch.where(predicted.amax(1) > 0.5, predicted.argmax(1) + 1, 0)
        return {
            "loss": losses["total"],
            "accuracy": (labels == batch["labels"]).float().mean(),
            **_without(losses, "total"),
        }

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """Columns: picture, true parts, predicted parts (as colours)."""
        self.eval()
        picture, labels = batch["picture"][:16], batch["labels"][:16]
        maps = attention_map(self.parts(picture), *picture.shape[-2:])[:, :-1]
        self.train()
        truth = torch.nn.functional.one_hot(labels, maps.shape[1] + 1)[..., 1:].permute(0, 3, 1, 2).float()
        return grid([picture, _coloured(truth), _coloured(maps)], count=16)


def _coloured(maps: torch.Tensor) -> torch.Tensor:
    """(B, K, H, W) weights to (B, 3, H, W) pictures, one hue a part."""
    angles = torch.arange(maps.shape[1]) * (2 * torch.pi / maps.shape[1])
    hues = torch.stack([0.5 + 0.5 * torch.cos(angles + shift) for shift in (0.0, 2.09, 4.19)]).to(maps)
    return torch.einsum("bkhw,ck->bchw", maps, hues)


def _without(values: dict, name: str) -> dict:
    return {key: value for key, value in values.items() if key != name}


def _jittered(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sides = np.array([box[2] - box[0], box[3] - box[1]] * 2, np.float32)
    return box + sides * rng.uniform(-BOX_JITTER, BOX_JITTER, 4).astype(np.float32)


def _mirrored_box(box: np.ndarray, width: int) -> np.ndarray:
    return np.array([width - 1 - box[2], box[1], width - 1 - box[0], box[3]], np.float32)
