"""Measures on pictures that a run does not train on, to see now and then whether it helps."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from diffbody_ref.data.datasets import Content, PeopleFolder
from diffbody_ref.evaluation.metrics import METRICS, Measure
from diffbody_ref.evaluation.packages import UnavailableError
from diffbody_ref.ops.progress import Progress, silent
from diffbody_ref.training.config import TrainConfig
from diffbody_ref.training.crops import degraded_pair

MEASURES = ("psnr", "ssim", "sharpness", "lpips", "feature_distance")
STREAM = 26  # tag of the degradations' seeds, which are the same for every run, whatever its seed


class HeldOut:
    """Held-out pictures, as large as they are, each with one degradation.

    Attributes:
        people: the pictures.
        measures: the measures that this machine can compute, by name.
        missing: the reasons why it lacks the others, by name.

    Args:
        config: names the pictures and the degradation.

    Raises:
        FileNotFoundError: see `PeopleFolder`.
        ValueError: see `PeopleFolder`.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.people = PeopleFolder(config.held_out)
        self.people.require_originals()
        self.measures: dict[str, Measure] = {}
        self.missing: dict[str, str] = {}
        for name in MEASURES:
            try:
                self.measures[name] = METRICS[name].build()
            except UnavailableError as error:
                self.missing[name] = str(error)

    def check_apart(self, trained: Iterable[Content], progress: Progress = silent) -> None:
        """Check that no held-out picture is among those that are trained on.

        Args:
            trained: checksums of the training pictures.
            progress: see `PeopleFolder.contents`.

        Raises:
            ValueError: one is; the message names it.
        """
        known = {content.picture for content in trained}
        for index, content in enumerate(self.people.contents(progress)):
            if content.picture in known:
                raise ValueError(f"{self.people.entry(index).name} is held out, and among the training pictures, too")

    def measure(self, restore: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        """The mean of each measure over the pictures, by name with the prefix "held_out_".

        Args:
            restore: restores a degraded picture, float32 (H, W, 3), RGB in [0, 1], to the same shape and range.

        Raises:
            OSError: a picture cannot be read.
            ValueError: a picture cannot be decoded.
        """
        sums = dict.fromkeys(self.measures, 0.0)
        for index in range(len(self.people)):
            rng = np.random.default_rng([STREAM, index])
            high, low = degraded_pair(self.people[index].picture, rng, self.config)
            restored = restore(low)
            for name, measure in self.measures.items():
                sums[name] += measure(restored, high)
        return {f"held_out_{name}": total / len(self.people) for name, total in sums.items()}
