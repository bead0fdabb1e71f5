"""The stage of person detector and keypoint network, which are trained together on the same pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffbody_ref.models.graphs import GraphModel
from diffbody_ref.models.pose import detect_people, estimate_pose
from diffbody_ref.ops.drawing import draw_pose
from diffbody_ref.ops.images import resize
from diffbody_ref.ops.keypoints import COUNT, FACE, LEFT_HAND, RIGHT_HAND
from diffbody_ref.ops.pose import crop_affine, letterbox
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.pose_losses import detector_loss, simcc_loss
from diffbody_ref.training.stages.base import TrainingStage, channels_first, grid
from diffbody_ref.training.views import View, jittered, random_view

BOX_JITTER = 0.1  # as a fraction of the box's sides
# Of the 133 points, 68 are of the face (the easiest to find), 42 of the hands, and 23 of body and feet.
BODY_WEIGHT, FACE_WEIGHT, HAND_WEIGHT = 4.0, 0.5, 2.0
MAX_PEOPLE = 2  # people in a training picture of the detector


class PoseStage(TrainingStage):
    """Trains `pose_detector` on canvases of one or two pictures and `pose` on jittered crops, or only `pose`."""

    trained: tuple[str, ...] = ("pose_detector", "pose")
    needs = ("keypoints", "box")

    @classmethod
    def components(cls, config: TrainConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (("pose",), ("pose_detector",)) if config.tuning == "keypoints" else (cls.trained, ())

    def load_or_build(self, name: str) -> Any:
        """A network to train.

        Raises:
            ValueError: the pipeline folder holds it as an ONNX graph.
        """
        network = super().load_or_build(name)
        if isinstance(network, GraphModel):
            raise ValueError(
                f"{self.config.pipeline}: its {name} is an ONNX graph, which cannot be trained; import a .pth file of "
                "RTMPose or YOLOX instead"
            )
        return network

    def compiled(self) -> list[torch.nn.Module]:
        detector = [self.pose_detector.backbone, self.pose_detector.head] if "pose_detector" in self.trained else []
        return [*detector, self.pose]

    def item(self, index: int, serial: int) -> dict[str, np.ndarray]:
        rng = self.random(serial)
        view = random_view(self.people[index], rng, self.config)
        keypoints = view.keypoints
        assert keypoints is not None  # see needs
        config = self.pose.settings
        crop, inverse = crop_affine(view.picture, jittered(view.box, BOX_JITTER, rng), config.height, config.width)
        # Hidden joints are learnt as well: a restored limb needs a position even if the picture hides it.
        weights = np.full(COUNT, BODY_WEIGHT, np.float32)
        weights[FACE], weights[LEFT_HAND], weights[RIGHT_HAND] = FACE_WEIGHT, HAND_WEIGHT, HAND_WEIGHT
        weights[keypoints[:, 2] == 0] = 0.0
        item = {
            "crop": crop,
            "keypoints": ((keypoints[:, :2] - inverse[:, 2]) / inverse[0, 0]).astype(np.float32),
            "weights": weights,
        }
        if "pose_detector" in self.trained:
            item["square"], item["boxes"] = self._canvas(view, rng)
        return item

    def _canvas(self, view: View, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A training sample of the detector: this picture, alone or beside another one, on a canvas.

        Returns:
            The detector's input (3, S, S), and the boxes (MAX_PEOPLE, 4) of the people, NaN for nobody.
        """
        size, picture = self.pose_detector.settings.size, view.picture
        boxes = np.full((MAX_PEOPLE, 4), np.nan, np.float32)
        boxes[0] = view.box
        if rng.random() < 0.5:
            other = random_view(self.people[int(rng.integers(len(self.people)))], rng, self.config)
            boxes[1] = other.box + np.array([picture.shape[1], 0] * 2, np.float32)
            picture = np.concatenate([picture, other.picture], axis=1)
        scale = rng.uniform(0.5, 1.0)
        height, width = (max(16, round(side * scale)) for side in picture.shape[:2])
        small = resize(picture, height, width, method="bilinear")
        frame = np.full((*picture.shape[:2], 3), rng.uniform(0, 1, 3), np.float32)
        top, left = (int(rng.integers(f - s + 1)) for f, s in zip(frame.shape[:2], small.shape[:2], strict=True))
        frame[top : top + small.shape[0], left : left + small.shape[1]] = np.clip(small, 0, 1)
        square, ratio = letterbox(frame, size)
        return square, ((boxes * scale + np.array([left, top] * 2)) * ratio).astype(np.float32)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        simcc_x, simcc_y = self.pose(batch["crop"])
        keypoints = simcc_loss(simcc_x.float(), simcc_y.float(), batch["keypoints"], batch["weights"])
        if "square" not in batch:
            return {"loss": keypoints}
        logits = self.pose_detector.logits(batch["square"]).float()
        detection = detector_loss(logits, batch["boxes"], self.pose_detector.settings.size)["loss"]
        return {"loss": detection + keypoints, "detection": detection, "keypoints": keypoints}

    def preview(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """Columns: picture; pose in the detected boxes."""
        self.eval()
        pictures, drawings = [], []
        for index in range(min(12, len(self.people))):
            picture = self.people[index].picture.astype(np.float32) / 255.0
            found = estimate_pose(self.pose, picture, detect_people(self.pose_detector, picture))
            pictures.append(torch.from_numpy(channels_first(picture)))
            drawings.append(torch.from_numpy(channels_first(draw_pose(found, *picture.shape[:2]))))
        self.train()
        return grid([torch.stack(pictures), torch.stack(drawings)], count=12)
