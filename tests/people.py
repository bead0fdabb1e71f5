"""A tiny stand-in for a synthetic folder: coloured figures in the on-disk layout that `diffbody synth` writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 256, 128


def write_people(folder: Path, identities: int = 3, views: int = 2, seed: int = 0) -> Path:
    """Rectangles for head, torso, arms, legs and feet on noise; keypoints at their corners."""
    (folder / "images").mkdir(parents=True)
    (folder / "parts").mkdir()
    lines = []
    for identity in range(identities):
        colours = np.random.default_rng([seed, identity]).integers(0, 256, (6, 3))
        for view in range(views):
            name = f"{identity:06d}_{view}.png"
            picture, parts, left = _figure(colours, np.random.default_rng([seed, identity, view]))
            Image.fromarray(picture).save(folder / "images" / name)
            Image.fromarray(parts).save(folder / "parts" / name)
            keypoints = np.zeros((133, 3))
            keypoints[:17] = [[left + 5 * (k % 4), 20 + 13 * k, 2] for k in range(17)]
            record = {
                "image": f"images/{name}",
                "parts": f"parts/{name}",
                "identity": identity,
                "view": view,
                "caption": f"person number {identity}",
                "keypoints": keypoints.tolist(),
                "box": [left, 16, left + 40, 240],
            }
            lines.append(json.dumps(record))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _figure(colours: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    picture = np.clip(colours[0] + rng.normal(0, 12, (HEIGHT, WIDTH, 3)), 0, 255)
    parts = np.zeros((HEIGHT, WIDTH), np.uint8)
    left = int(rng.integers(20, 60))
    bands = {
        1: (16, 50, 12, 28),
        2: (50, 130, 10, 30),
        3: (55, 130, 0, 10),
        4: (130, 225, 10, 30),
        5: (225, 240, 8, 32),
    }
    for label, (top, bottom, start, stop) in bands.items():
        window = slice(top, bottom), slice(left + start, left + stop)
        picture[window] = colours[label] + rng.normal(0, 4, (bottom - top, stop - start, 3))
        parts[window] = label
    return np.clip(picture, 0, 255).astype(np.uint8), parts, left
