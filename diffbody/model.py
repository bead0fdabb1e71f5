"""A loaded model, and what it gives for a picture: `diffbody.load` and `diffbody.restore`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffbody.loading import NANO_FOLDER, EngineConfig, open_restorer
from diffbody_ref.ops.images import ImageInput, as_picture, read_image, resize, write_image
from diffbody_ref.ops.results import Intermediates
from runtime.bundle import MANIFEST

if TYPE_CHECKING:
    from runtime.restore import Restorer
    from runtime.sampling import Step


@dataclass(frozen=True)
class Restoration:
    """A restored picture of the output size H×W.

    Attributes:
        pixels: float32 (H, W, 3), RGB in [0, 1], not multiplied by alpha.
        alpha: float32 (H, W) in [0, 1], 1 is opaque: the input's transparency at the output's size. None where the
            input has none.
        intermediates: what the stages found on the way.
        notices: what whoever asked should know, a line each, such as that no person was found.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    intermediates: Intermediates
    notices: tuple[str, ...]

    @property
    def image(self) -> Image.Image:
        """The picture for PIL, 8 bits a channel: RGB, or RGBA where there is alpha."""
        values = self.pixels if self.alpha is None else np.dstack([self.pixels, self.alpha])
        return Image.fromarray(np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the picture to a file (png, jpg or webp), whole or not at all.

        Raises:
            ImageError: an unknown suffix, a place that cannot be written to, or a file that exists and is not to be
                overwritten.
        """
        write_image(path, self.pixels, self.alpha, overwrite)


class Model:
    """A model that is ready to restore pictures, on the engines of its bundle.

    Args:
        restorer: the bundle's.
    """

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer

    @property
    def defaults(self) -> dict[str, Any]:
        """The model's own values of the options, by name, and its base size."""
        return dict(self._restorer.manifest.settings)

    def restore(
        self,
        image: ImageInput | str | os.PathLike[str],
        prompt: str | None = None,
        negative_prompt: str | None = None,
        *,
        seed: int = 0,
        callback: Callable[[Step], None] | None = None,
        **options: Any,
    ) -> Restoration:
        """Restore one picture.

        Args:
            image: path of a picture file, a PIL picture, or an array, float (H, W, 3) in [0, 1].
            prompt: describes the picture, from head to toe.
            negative_prompt: describes what the picture should not look like; needs a `guidance_scale` other than 1.
            seed: of the noise, at least 0. The same seed gives the same picture.
            callback: called after each denoising step.
            options: attributes of `diffbody_ref.ops.options.RestoreOptions`; those not given are in `defaults`, or the
                class's own.

        Raises:
            ValueError: a picture that cannot be read, an unknown option, or a value out of its range.
        """
        picture = read_image(image) if isinstance(image, str | os.PathLike) else as_picture(image)
        result = self._restorer.restore(picture, prompt, negative_prompt, seed=seed, callback=callback, **options)
        alpha = alpha_of_size(picture.alpha, result.pixels)
        return Restoration(result.pixels, alpha, result.found, tuple(result.notices))


def load_model(model: str | Path = "nano", config: EngineConfig | None = None) -> Model:
    """See `diffbody.load`."""
    return Model(open_restorer(bundle_folder(model), config or EngineConfig()))


def bundle_folder(model: str | Path) -> Path:
    """The bundle's folder of a model.

    Args:
        model: "nano", or the folder itself.

    Raises:
        ValueError: there is no such folder, or it is no bundle.
    """
    folder = NANO_FOLDER if model == "nano" else Path(model)
    if (folder / MANIFEST).is_file():
        return folder
    if folder.is_dir():
        raise ValueError(f"{folder}: not a bundle, it has no {MANIFEST}; make one with `diffbody export`")
    raise ValueError(f"unknown model {str(model)!r}: neither 'nano' nor the folder of a bundle")


def alpha_of_size(alpha: np.ndarray | None, pixels: np.ndarray) -> np.ndarray | None:
    """A picture's alpha at the size of its restored pixels, float32 (H, W) in [0, 1]; None stays None."""
    if alpha is None:
        return None
    return np.clip(resize(alpha, pixels.shape[0], pixels.shape[1]), 0.0, 1.0)
