"""What a run leaves to look at: log.jsonl, samples/, and TensorBoard's files if asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


class Record:
    """Written by the main process.

    Args:
        output: the run's folder.
        start: the step that the run goes on from; what was logged after it is of steps that are taken again, and goes.
        tensorboard: also write to `output`/tensorboard.
    """

    def __init__(self, output: Path, start: int, tensorboard: bool) -> None:
        self.output = output
        (output / "samples").mkdir(parents=True, exist_ok=True)
        _drop_after(output / "log.jsonl", start)
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=start + 1 if start else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        with (self.output / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Args: picture: float32 (H, W, 3), about [0, 1]."""
        pixels = np.uint8(np.round(np.clip(picture, 0.0, 1.0) * 255.0))
        Image.fromarray(pixels).save(self.output / "samples" / f"{step:07d}.png")
        if self.writer is not None:
            self.writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _drop_after(path: Path, step: int) -> None:
    if path.is_file():
        lines = [line for line in path.read_text().splitlines() if _step(line) <= step]
        path.with_suffix(".tmp").write_text("".join(line + "\n" for line in lines))
        path.with_suffix(".tmp").replace(path)


def _step(line: str) -> float:
    """The step of a line; infinite for one that was cut while it was written."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
