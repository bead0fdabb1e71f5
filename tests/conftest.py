"""Fixtures for all tests, and the skip of those that need a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffbody_ref.ops.images import write_image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and PyTorch finds none here"))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of the tests and of the programs that they start: not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFBODY_CACHE", str(folder))
        yield folder


@pytest.fixture
def pixels() -> np.ndarray:
    """A picture, float32 (48, 40, 3) in [0, 1], of whole 8-bit levels, so that a PNG holds it exactly."""
    levels = np.random.default_rng(7).integers(0, 256, (48, 40, 3))
    return levels.astype(np.float32) / np.float32(255)


@pytest.fixture
def photo(tmp_path: Path, pixels: np.ndarray) -> Path:
    """`pixels` as the file photo.png in a folder of its own."""
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    write_image(path, pixels)
    return path


@pytest.fixture
def album(tmp_path: Path, pixels: np.ndarray) -> Path:
    """A folder of two good pictures, a truncated one and a text file with a picture's suffix."""
    folder = tmp_path / "album"
    folder.mkdir()
    write_image(folder / "a.png", pixels)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:1000])
    (folder / "c.jpg").write_text("not a picture")
    write_image(folder / "d.webp", 1 - pixels)
    (folder / "notes.txt").write_text("not meant to be a picture")
    return folder
