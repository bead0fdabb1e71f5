"""From linear radiance to a photograph: depth of field, exposure, colour, tone, vignette, grain."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

_RADII = (0.25, 0.5, 1.0)  # radii of the discs that blur the far field, relative to the largest
_NEAR, _FAR = -0.45, 0.4  # distances in metres in front of and behind the person that stay in focus


def random_aperture(rng: np.random.Generator, distance: float) -> float:
    """Draw the blur radius of infinitely distant things, relative to the picture's height; larger for near people."""
    if rng.random() < 0.3:
        return 0.0
    return float(rng.uniform(0.002, 0.02) * np.clip(3.0 / distance, 0.5, 2.0))


def _disc(radius: float) -> np.ndarray:
    """A disc with a soft edge of one pixel and sum 1."""
    reach = int(np.ceil(radius + 0.5))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return disc / disc.sum()


def _blurred(layer: np.ndarray, radius: float) -> np.ndarray:
    """A layer (H, W, C) blurred by a disc."""
    if radius < 0.4:
        return layer
    disc = _disc(radius)
    reach = len(disc) // 2
    padded = np.pad(layer, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return fftconvolve(padded, disc[..., None].astype(np.float32), mode="valid", axes=(0, 1)).astype(np.float32)


def expose_lens(
    colour: np.ndarray, depth: np.ndarray, subject: np.ndarray, focus: float, aperture: float
) -> np.ndarray:
    """Average each pixel's samples, with depth of field: what is far or near is blurred by discs.

    The far field, the field in focus and the near field are blurred separately, each with its own coverage, so that the
    person never bleeds into the background.

    Args:
        colour: float32 (H, S, W, S, 3), radiance.
        depth: (H, S, W, S), metres; inf is allowed.
        subject: bool (H, S, W, S), where the person in focus is.
        focus: distance of the person in metres.
        aperture: from `random_aperture`.

    Returns:
        float32 (H, W, 3).
    """
    height = colour.shape[0]
    if aperture == 0:
        return colour.mean((1, 3))
    behind = (depth > focus + _FAR) & ~subject
    in_front = (depth < focus + _NEAR) & ~subject

    def layer(where: np.ndarray) -> np.ndarray:
        return np.concatenate([colour * where[..., None], where[..., None]], -1, dtype=np.float32).mean((1, 3))

    largest = aperture * height
    far = layer(behind)
    share = np.where(behind, 1 - focus / np.maximum(depth, focus), 0).mean((1, 3))[..., None].astype(np.float32)
    spread = _blurred(np.concatenate([share, far[..., 3:]], -1), 0.6 * largest)
    share = spread[..., 0] / np.maximum(spread[..., 1], 1e-3)
    stack = [far] + [_blurred(far, largest * radius) for radius in _RADII]
    stack = [rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-3) for rgba in stack]
    position = np.interp(share, (0.0, *_RADII), range(len(_RADII) + 1))
    weights = [np.clip(1 - np.abs(position - i), 0, 1)[..., None].astype(np.float32) for i in range(len(stack))]
    soft = sum(w * rgb for w, rgb in zip(weights, stack, strict=True))
    out = soft * far[..., 3:] + layer(~behind & ~in_front)[..., :3]
    if in_front.any():
        closeness = float(np.clip(focus / np.median(depth[in_front]) - 1, 0, 1.5))
        # What the near field hides is unknown: behind its blurred edge the sharp picture is filled from the vicinity.
        near = layer(in_front)
        around = _blurred(np.concatenate([out, 1 - near[..., 3:]], -1), max(3.0, largest))
        filled = out + around[..., :3] / np.maximum(around[..., 3:], 0.02) * near[..., 3:]
        veil = _blurred(near, largest * closeness)
        out = filled * (1 - veil[..., 3:]) + veil[..., :3]
    return out.astype(np.float32)


def develop(rng: np.random.Generator, colour: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Convert linear radiance to a photograph, with the imperfections of a camera's automatic mode.

    The exposure is mostly chosen for the person, the white balance is slightly off; then come vignette, a film-like
    tone curve, muted colours, slight softness, and grain that is stronger in the shadows.

    Args:
        rng: source of randomness.
        colour: float32 (H, W, 3), linear radiance.
        person: bool (H, W), where the person is.

    Returns:
        uint8 (H, W, 3), sRGB.
    """
    height, width = person.shape
    luminance = colour @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    level = 0.6 * luminance[person].mean() + 0.4 * np.median(luminance) if person.any() else luminance.mean()
    level = max(float(level), 0.32 * float(np.quantile(luminance, 0.93)), 1e-4)  # so that few highlights are lost
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - rng.uniform(0.0, 0.22) * (0.6 * y * y + 0.4 * x * x)
    balance = np.exp(rng.normal(0, [0.05, 0.01, 0.05]))
    exposure = 0.2 * np.exp(rng.normal(0.0, 0.2)) / level
    exposed = colour * (balance * exposure * vignette[..., None]).astype(np.float32)
    grey = exposed @ np.full((3, 1), 1 / 3, np.float32)
    exposed = grey + (exposed - grey) * np.float32(rng.uniform(0.85, 1.05))  # cameras' colours are paler than albedos
    exposed = np.maximum(exposed, 0)
    exposed = np.where(exposed > 0.55, 0.55 + 0.45 * (1 - np.exp(-(exposed - 0.55) / 0.45)), exposed)  # highlights
    tone = np.clip(exposed, 0, 1) ** np.float32(1 / 2.2)
    tone = tone + np.float32(rng.uniform(0.15, 0.6)) * (tone * tone * (3 - 2 * tone) - tone)
    tone = rng.uniform(0.0, 0.02) + tone * np.float32(rng.uniform(0.97, 1.0))
    soft = gaussian_filter(tone, (0.6, 0.6, 0))
    tone = soft + (tone - soft) * np.float32(rng.uniform(0.7, 1.5))
    grain = rng.standard_normal((height, width, 4), np.float32)
    grain = gaussian_filter(grain, (0.4, 0.4, 0))
    strength = np.float32(rng.uniform(0.002, 0.013)) * (1.3 - tone.mean(-1, keepdims=True))
    tone = tone + strength * (grain[..., :1] + 0.5 * grain[..., 1:])
    return np.rint(np.clip(tone, 0, 1) * 255).astype(np.uint8)
