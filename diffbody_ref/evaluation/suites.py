"""The suites that `diffbody evaluate --suite NAME` can evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Suite:
    """The methods of an evaluation, and what is reported about them.

    Attributes:
        about: one line about the suite.
        methods: names in `methods.METHODS`, in the order of the tables.
        pairs: pairs of methods (a, b) whose differences a − b are reported.
        figures: by name of the figure, its title and methods; the others are compared with the last method.
        structure: measure what the structure networks find instead of how near the pictures are to the originals.
    """

    about: str
    methods: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    figures: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    structure: bool = False


FULL = "diffbody"
_PEERS = ("bicubic", "real-esrgan", "swinir", "diffbir")
_STRUCTURE = ("without-structure", "without-pose", "without-attention")
# One of the two is what the model does anyway, and is left out. The residual may hide that the diffusion alone is worse
# than the regression.
_RESIDUAL = ("with-residual", "without-residual")
_ABLATIONS = (*_STRUCTURE, "without-prompt", "without-sampler", *_RESIDUAL)

SUITES: dict[str, Suite] = {
    "stages": Suite(
        "what each stage of the method adds",
        ("input", "bicubic", "swinir", *_RESIDUAL, "without-sampler", FULL),
        (("swinir", "bicubic"), *((FULL, other) for other in ("swinir", *_RESIDUAL, "without-sampler"))),
    ),
    "paper": Suite(
        "table 1 and figures 7 to 9: other methods, and this one without its parts",
        (*_PEERS, FULL, *_ABLATIONS),
        tuple((FULL, other) for other in (*_PEERS, *_ABLATIONS)),
        {
            "figure7": ("Figure 7: structural guidance", (*_STRUCTURE, FULL)),
            "figure8": ("Figure 8: text guidance", ("without-prompt", FULL)),
            "figure9": ("Figure 9: body part-based sampler", ("without-sampler", FULL)),
        },
    ),
    "structure": Suite(
        "keypoints, body parts and identity, found in clean, degraded and restored pictures",
        ("original", "bicubic", "swinir", *_RESIDUAL, FULL),
        structure=True,
    ),
}
