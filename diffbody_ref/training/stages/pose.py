"""The person detector and the keypoint network, trained side by side on the same pictures."""

from __future__ import annotations

import numpy as np
import torch

from diffbody_ref.models.pose import detect_people, estimate_pose
from diffbody_ref.ops.drawing import draw_pose
from diffbody_ref.ops.images import resize
from diffbody_ref.ops.keypoints import FACE, FLIP
from diffbody_ref.ops.pose import crop_affine, letterbox
from diffbody_ref.training.pose_losses import detector_loss, simcc_loss
from diffbody_ref.training.stages.base import Stage, channels_first, degraded_pair, grid

DEGRADED_SHARE = 0.3  # the networks meet regression results, which are softer than clean pictures
BOX_JITTER = 0.1  # of the box's sides
BODY_WEIGHT = 4.0  # of body and feet, 23 of 133 points, which else would learn after the face's 68
MAX_BESIDE = 2  # people in a detector's training picture


class PoseStage(Stage):
    """Trains `pose_detector` on canvases of one or two pictures and `pose` on jittered crops."""

    trained = ("pose_detector", "pose")
    needs = ("keypoints", "box")

    def compiled(self) -> list[torch.nn.Module]:
        return [self.pose_detector.backbone, self.pose_detector.head, self.pose]

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng = self.random(serial)
        picture, keypoints, box = self._view(index, rng)
        sides = np.array([box[2] - box[0], box[3] - box[1]] * 2, np.float32)
        jittered = box + sides * rng.uniform(-BOX_JITTER, BOX_JITTER, 4).astype(np.float32)
        config = self.pose.settings
        crop, inverse = crop_affine(picture, jittered, config.height, config.width)
        square, boxes = self._canvas(picture, box, rng)
        # Hidden joints are learnt as well: a restored limb needs its place even where the picture hides it.
        weights = (keypoints[:, 2] > 0).astype(np.float32)
        weights[: FACE.start] *= BODY_WEIGHT
        return {
            "crop": crop,
            "keypoints": ((keypoints[:, :2] - inverse[:, 2]) / inverse[0, 0]).astype(np.float32),
            "weights": weights,
            "square": square,
            "boxes": boxes,
        }

    def _view(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Picture float32 [0, 1], keypoints and box, possibly mirrored, possibly degraded."""
        person = self.people[index]
        picture, keypoints, box = person.picture, person.keypoints, person.box
        assert keypoints is not None  # see needs
        assert box is not None
        if rng.random() < 0.5:
            last = picture.shape[1] - 1
            picture, keypoints = np.ascontiguousarray(picture[:, ::-1]), keypoints[np.asarray(FLIP)].copy()
            keypoints[:, 0] = last - keypoints[:, 0]
            box = np.array([last - box[2], box[1], last - box[0], box[3]], np.float32)
        if rng.random() < DEGRADED_SHARE:
            return degraded_pair(picture, rng, self.config)[1], keypoints, box
        return picture.astype(np.float32) / 255.0, keypoints, box

    def _canvas(self, picture: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A detector input (3, S, S) of this picture, alone or beside another; boxes (MAX_BESIDE, 4), NaN for none."""
        size = self.pose_detector.settings.size
        boxes = np.full((MAX_BESIDE, 4), np.nan, np.float32)
        boxes[0] = box
        if rng.random() < 0.5:
            other, _, other_box = self._view(int(rng.integers(len(self.people))), rng)
            boxes[1] = other_box + np.array([picture.shape[1], 0] * 2, np.float32)
            picture = np.concatenate([picture, other], axis=1)
        scale = rng.uniform(0.5, 1.0)
        height, width = (max(16, round(side * scale)) for side in picture.shape[:2])
        small = resize(picture, height, width, method="bilinear")
        frame = np.full((*picture.shape[:2], 3), rng.uniform(0, 1, 3), np.float32)
        top, left = (int(rng.integers(f - s + 1)) for f, s in zip(frame.shape[:2], small.shape[:2], strict=True))
        frame[top : top + small.shape[0], left : left + small.shape[1]] = np.clip(small, 0, 1)
        square, ratio = letterbox(frame, size)
        return square, ((boxes * scale + np.array([left, top] * 2)) * ratio).astype(np.float32)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        boxes = [rows[~rows.isnan().any(dim=1)] for rows in batch["boxes"]]
        logits = self.pose_detector.logits(batch["square"]).float()
        detection = detector_loss(logits, boxes, self.pose_detector.settings.size)["loss"]
        simcc_x, simcc_y = self.pose(batch["crop"])
        keypoints = simcc_loss(simcc_x.float(), simcc_y.float(), batch["keypoints"], batch["weights"])
        return {"loss": detection + keypoints, "detection": detection, "keypoints": keypoints}

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """Columns: picture; pose drawn at the boxes that were found."""
        self.eval()
        pictures, drawings = [], []
        for index in range(min(12, len(self.people))):
            picture = self.people[index].picture.astype(np.float32) / 255.0
            found = estimate_pose(self.pose, picture, detect_people(self.pose_detector, picture))
            pictures.append(torch.from_numpy(channels_first(picture)))
            drawings.append(torch.from_numpy(channels_first(draw_pose(found, *picture.shape[:2]))))
        self.train()
        return grid([torch.stack(pictures), torch.stack(drawings)], count=12)
