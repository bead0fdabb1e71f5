"""The record of a run for people: log.jsonl, samples/, and optionally TensorBoard's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from diffbody_ref.ops.files import whole_file, write_whole
from diffbody_ref.training.disk import writing


class Record:
    """Writes the record of a run; used by the main process only.

    Args:
        output: folder of the run.
        start: step from which the run continues; later lines of the log are removed, because their steps are repeated.
        tensorboard: also write to `output`/tensorboard.
    """

    def __init__(self, output: Path, start: int, tensorboard: bool) -> None:
        self.output = output
        (output / "samples").mkdir(parents=True, exist_ok=True)
        _remove_after(output / "log.jsonl", start)
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=start + 1 if start else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log values by name, such as losses."""
        path = self.output / "log.jsonl"
        with writing(path), path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Write a sample picture, float32 (H, W, 3); values outside [0, 1] are clipped."""
        pixels = np.uint8(np.round(np.clip(picture, 0.0, 1.0) * 255.0))
        path = self.output / "samples" / f"{step:07d}.png"
        with writing(path), whole_file(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
        if self.writer is not None:
            self.writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Close TensorBoard's files."""
        if self.writer is not None:
            self.writer.close()


def _remove_after(log: Path, step: int) -> None:
    """Remove the lines of later steps from a log, if it exists."""
    if log.is_file():
        lines = [line for line in log.read_text().splitlines() if _step(line) <= step]
        write_whole(log, "".join(line + "\n" for line in lines))


def _step(line: str) -> float:
    """The step of a line; infinite for a line that was not written completely."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
