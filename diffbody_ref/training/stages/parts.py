"""The stage of the part network, BPBReID: pixel and identity cross-entropy and a triplet loss on crops of people."""

from __future__ import annotations

import numpy as np
import torch

from diffbody_ref.models.parts import attention_map
from diffbody_ref.ops.images import resize
from diffbody_ref.ops.pose import person_crop
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.parts_losses import IdentityHead, PartLossConfig, part_losses
from diffbody_ref.training.stages.base import TrainingStage, channels_first, grid
from diffbody_ref.training.views import jittered, random_view

BOX_JITTER = 0.08  # as a fraction of the box's sides


class PartsStage(TrainingStage):
    """Trains `parts`. `identity_head` exists only in training.

    The batch size should be a multiple of the number of views per identity, so that batches contain whole groups.
    """

    trained = ("parts",)
    needs = ("parts", "box", "identity")

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.identity_head = IdentityHead(len(self.people.identities), self.parts.settings)
        self.loss_config = PartLossConfig(config.pixel_weight, config.overlap_weight)
        groups: dict[int | None, list[int]] = {}
        for index in range(len(self.people)):
            groups.setdefault(self.people.identity(index), []).append(index)
        self.groups = list(groups.values())

    def order(self, epoch: int) -> np.ndarray:
        """The indices of one epoch: identities in random order, the views of each identity one after the other."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.groups))
        return np.concatenate([self.groups[i] for i in order]).astype(np.int64)

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng, person = self.random(serial), self.people[index]
        view = random_view(person, rng, self.config)
        assert view.parts is not None  # see needs
        # Checked here and not for the batch, where it would have to wait for the GPU.
        if (largest := int(view.parts.max())) > len(self.parts.part_names):
            raise ValueError(
                f"{self.people.entry(index).name}: label {largest} in its part map; the network knows 0 to "
                f"{len(self.parts.part_names)}"
            )
        x0, y0, x1, y1 = person_crop(jittered(view.box, BOX_JITTER, rng), *view.picture.shape[:2])
        pixels, labels = view.picture[y0:y1, x0:x1], view.parts[y0:y1, x0:x1]
        height, width = self.parts.input_size
        pixels = np.clip(resize(pixels, height, width, method="bilinear"), 0, 1)
        rows, columns = np.arange(height) * (y1 - y0) // height, np.arange(width) * (x1 - x0) // width
        return {
            "picture": channels_first(pixels).astype(np.float32),
            "labels": labels[rows][:, columns].astype(np.int64),
            "identity": np.asarray(person.identity, np.int64),
        }

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = self.parts(batch["picture"])
        losses = part_losses(output, self.identity_head(output), batch["labels"], batch["identity"], self.loss_config)
        classes, stride = output.logits.argmax(dim=1), self.parts.input_size[0] // output.logits.shape[2]
        middles = batch["labels"][:, stride // 2 :: stride, stride // 2 :: stride]
        loss = losses.pop("total")
        return {"loss": loss, "accuracy": (classes == middles).float().mean(), **losses}

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """Columns: picture, true parts, predicted parts (as colours)."""
        self.eval()
        picture, labels = batch["picture"][:16], batch["labels"][:16]
        maps = attention_map(self.parts(picture).masks, *picture.shape[-2:])[:, :-1]
        self.train()
        truth = torch.nn.functional.one_hot(labels, maps.shape[1] + 1)[..., 1:].permute(0, 3, 1, 2).float()
        return grid([picture, _coloured(truth), _coloured(maps)], count=16)


def _coloured(maps: torch.Tensor) -> torch.Tensor:
    """Colour part maps (B, K, H, W) to pictures (B, 3, H, W), one hue per part."""
    angles = torch.arange(maps.shape[1]) * (2 * torch.pi / maps.shape[1])
    hues = torch.stack([0.5 + 0.5 * torch.cos(angles + shift) for shift in (0.0, 2.09, 4.19)]).to(maps)
    return torch.einsum("bkhw,ck->bchw", maps, hues)
