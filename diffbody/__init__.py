"""DiffBody restores degraded pictures of people with a diffusion model that knows the human body.

    import diffbody

    diffbody.restore("photo.jpg").image.save("better.png")

    model = diffbody.load()  # once for many pictures
    for name in ("a.jpg", "b.jpg"):
        model.restore(name, num_inference_steps=20, seed=1).save(f"{name}.restored.png")

Importing this package is cheap: what restores is imported by the first call. The command `diffbody` is in
`diffbody.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbody_ref import __version__

if TYPE_CHECKING:
    from diffbody_ref.ops.images import ImageInput
    from runtime.engines import EngineConfig
    from runtime.restore import Restoration, Restorer

__all__ = ["EngineConfig", "Restoration", "Restorer", "__version__", "load", "restore"]

# Where the names come from that are imported when they are first asked for.
_LAZY = {"EngineConfig": "runtime.engines", "Restoration": "runtime.restore", "Restorer": "runtime.restore"}


def load(model: str | Path = "nano", config: EngineConfig | None = None) -> Restorer:
    """Load a model to restore pictures with.

    Args:
        model: "nano", which is built in, or the folder of a bundle that `diffbody export` made.
        config: what runs the model: engine, device, precision and so on. None is `EngineConfig()`.

    Returns:
        What restores: its `restore` takes one picture after the other.

    Raises:
        ValueError: no such model, a bundle that is broken, or an engine, device or precision that is not there.

    Examples:
        >>> model = diffbody.load()
        >>> model.restore("photo.jpg").save("better.png")
        >>> diffbody.load("bundles/mine", diffbody.EngineConfig(device="cuda", precision="float16"))
    """
    from diffbody_ref.ops.builtin import NANO_FOLDER
    from runtime.restore import Restorer

    folder = NANO_FOLDER if model == "nano" else Path(model)
    if not folder.is_dir():
        raise ValueError(f"unknown model {str(model)!r}: neither 'nano' nor the folder of a bundle")
    return Restorer.open(folder, config)


def restore(
    image: ImageInput,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    *,
    model: str | Path = "nano",
    config: EngineConfig | None = None,
    seed: int = 0,
    **options: Any,
) -> Restoration:
    """Restore one picture. The model is loaded for this call; for many pictures, `load` it once.

    Args:
        image: path of a picture file, a PIL picture, or an array, float (H, W, 3) in [0, 1].
        prompt: describes the picture, from head to toe.
        negative_prompt: describes what the picture should not look like; needs a `guidance_scale` other than 1.
        model, config: see `load`.
        seed: of the noise, at least 0. The same seed gives the same picture.
        options: attributes of `diffbody_ref.ops.options.RestoreOptions`, such as `num_inference_steps`, `sampler`,
            `strength`, `body_guidance_scale` and `upscale`. What is not given is the model's own value.

    Returns:
        The restored picture; `.image` is a PIL picture, `.pixels` an array.

    Raises:
        ValueError: a picture that cannot be read, an unknown option, a value out of its range; or as `load`.

    Examples:
        >>> diffbody.restore("photo.jpg").image.show()
        >>> diffbody.restore("photo.jpg", "a woman with short brown hair, a red coat", upscale=2).save("better.png")
        >>> diffbody.restore("photo.jpg", sampler="dpm++", num_inference_steps=15, body_guidance_every=3)
    """
    return load(model, config).restore(image, prompt, negative_prompt, seed=seed, **options)


if not TYPE_CHECKING:  # a type checker would take every name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
