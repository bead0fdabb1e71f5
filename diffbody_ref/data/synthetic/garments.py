"""Random clothes: cut, material and words of each garment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffbody_ref.data.synthetic.accessories import article
from diffbody_ref.data.synthetic.textures import PALETTE, Material, linear, material, named_colour

_PATTERNS = (
    "striped",
    "pinstriped",
    "checked",
    "dotted",
    "floral",
    "camouflage",
    "heather",
    "knit",
    "tartan",
    "chevron",
)
_CHANCES = (0.22, 0.08, 0.13, 0.08, 0.13, 0.05, 0.09, 0.08, 0.08, 0.06)
_SOBER = ("black", "dark grey", "grey", "navy", "blue", "beige", "brown", "olive", "khaki", "burgundy", "white")


@dataclass(frozen=True)
class Garment:
    """One garment. Lengths are in metres on the template (see `clothing`).

    Attributes:
        words: words for the caption, such as "a striped red and white t-shirt".
        kind: "t-shirt", "jeans", "boots" ...; it determines what is built and painted.
        cloth: material.
        sleeve: position along the arm of the sleeve's end, 0 at the shoulder, 1 at the wrist (upper garments).
        hem: template z of the lower end.
        neck: radius of the neckline (upper garments); 0 is closed up to the neck.
        vee: depth of a V-neck at the front.
        loose: distance from the body.
        flare: additional distance at the lower end.
        pleats: number of waves around a skirt; 0 is none.
        gap: half the width of an open front at its hem (outer garments); 0 is closed.
        trim: material of buttons, prints, linings and soles.
        detail: "", "print", "logo", "lettering", "tie", "pocket" or "piping".
    """

    words: str
    kind: str
    cloth: Material
    sleeve: float = 0.0
    hem: float = 0.0
    neck: float = 0.0
    vee: float = 0.0
    loose: float = 0.008
    flare: float = 0.0
    pleats: int = 0
    gap: float = 0.0
    trim: Material | None = None
    detail: str = ""

    @property
    def skirted(self) -> bool:
        """Whether the garment hangs around both legs."""
        return self.kind in ("skirt", "dress", "coat")

    @property
    def collared(self) -> bool:
        """Whether the garment has a collar."""
        return self.kind in ("shirt", "polo shirt", "blazer", "jacket", "denim jacket", "coat")


def _cloth(rng: np.random.Generator, plain: float, names: tuple[str, ...] = tuple(PALETTE)) -> tuple[Material, str]:
    """Draw a cloth, and its words such as "striped red and white".

    Args:
        rng: source of randomness.
        plain: probability of plain cloth.
        names: colours in `PALETTE` to choose from.
    """
    first = str(rng.choice(names))
    second, third = (str(name) for name in rng.choice([n for n in PALETTE if n != first], 2, replace=False))
    if rng.random() < 0.4:
        second = "white" if first not in ("white", "beige", "light grey") else "black"
    pattern = "plain" if rng.random() < plain else str(rng.choice(_PATTERNS, p=_CHANCES))
    tones = [named_colour(rng, name) for name in (first, second, third)]
    if pattern in ("plain", "heather", "knit"):
        tones[1] = np.clip(tones[0] * rng.choice([0.6, 1.5]) + 0.01, 0, 0.9)
    if pattern == "checked":
        tones[1] = tones[0] * rng.uniform(0.25, 0.5)
    scale = {"camouflage": 0.12, "heather": 0.05, "knit": float(rng.uniform(0.009, 0.016))}
    scale |= {"striped": float(rng.uniform(0.025, 0.09)), "pinstriped": float(rng.uniform(0.015, 0.04))}
    size = scale.get(pattern, float(np.exp(rng.uniform(-3.3, -2.4))))
    words = {"plain": first, "heather": f"mottled {first}", "knit": f"knitted {first}", "tartan": f"tartan {first}"}
    words |= {"camouflage": f"camouflage {first}", "checked": f"checked {first}"}
    text = words.get(pattern, f"{pattern} {first} and {second}")
    return material(rng, pattern, tones, size, float(rng.uniform(0.012, 0.035))), text


def _denim(rng: np.random.Generator, name: str) -> Material:
    tone = named_colour(rng, name, 0.1) * 0.9
    return material(rng, "denim", [tone, np.clip(tone * 1.7 + 0.03, 0, 0.9)], 0.004, 0.035)


def _plain(rng: np.random.Generator, name: str, grain: float = 0.025) -> Material:
    return material(rng, "plain", [named_colour(rng, name)], 0.1, grain)


_UPPERS = {  # chance, sleeve, looseness, neck
    "t-shirt": (0.28, 0.34, 0.011, 0.074),
    "long-sleeved top": (0.12, 0.97, 0.009, 0.078),
    "shirt": (0.2, 0.97, 0.013, 0.06),
    "sweater": (0.13, 0.97, 0.017, 0.068),
    "turtleneck": (0.05, 0.97, 0.012, 0.0),
    "hoodie": (0.09, 0.97, 0.02, 0.066),
    "polo shirt": (0.07, 0.34, 0.012, 0.06),
    "tank top": (0.06, -0.03, 0.007, 0.115),
}


def random_upper(rng: np.random.Generator, female: bool, tucked: bool) -> Garment:
    """Draw a garment of the trunk, worn alone or below an outer garment; `tucked` puts it into the waistband."""
    kind = str(rng.choice(list(_UPPERS), p=[row[0] for row in _UPPERS.values()]))
    _, sleeve, loose, neck = _UPPERS[kind]
    if kind == "shirt" and rng.random() < 0.35:
        sleeve = float(rng.uniform(0.36, 0.66))
    plain = {"shirt": 0.45, "hoodie": 0.8, "polo shirt": 0.65, "turtleneck": 0.6, "sweater": 0.35}.get(kind, 0.5)
    cloth, words = _cloth(rng, plain)
    vee = {"shirt": 0.05, "polo shirt": 0.05}.get(kind, 0.0)
    if kind in ("t-shirt", "sweater", "long-sleeved top") and rng.random() < (0.35 if female else 0.12):
        vee, words = float(rng.uniform(0.05, 0.1)), f"v-neck {words}"
    detail, trim = "", _plain(rng, "white")
    if kind in ("t-shirt", "sweater", "long-sleeved top", "hoodie", "tank top") and cloth.pattern in (
        "plain",
        "heather",
    ):
        detail = str(rng.choice(["", "print", "logo", "lettering"], p=[0.45, 0.25, 0.15, 0.15]))
        if detail:
            tones = [named_colour(rng, str(name)) for name in rng.choice(list(PALETTE), 3, replace=False)]
            trim = material(
                rng, str(rng.choice(["floral", "checked", "dotted", "gradient", "chevron"])), tones, 0.06, 0.03
            )
            words = f"{'printed' if detail == 'print' else detail.replace('ing', 'ed')} {words}".replace("logo ", "")
            words = words.replace("lettered", "printed")
    if kind == "shirt":
        detail = "tie" if not female and rng.random() < 0.15 else str(rng.choice(["", "pocket"]))
        trim = material(
            rng,
            str(rng.choice(["plain", "striped", "dotted"])),
            [named_colour(rng, str(n)) for n in rng.choice(_SOBER, 2)],
            0.03,
            0.04,
        )
    hem = 0.1 if tucked else {"tank top": 0.04, "hoodie": 0.0}.get(kind, 0.02) + rng.normal(0, 0.014)
    text = article(f"{words} {kind}") + (" with a tie" if detail == "tie" else "")
    return Garment(
        text,
        kind,
        cloth,
        float(sleeve + rng.normal(0, 0.02)),
        float(hem),
        float(neck + (rng.uniform(-0.004, 0.012) if neck else 0)),
        vee,
        loose,
        trim=trim,
        detail=detail,
    )


def random_outer(rng: np.random.Generator, female: bool) -> Garment:
    """Draw a jacket, cardigan or coat, which is open over the upper garment."""
    kinds = ["jacket", "blazer", "denim jacket", "cardigan", "coat", "zip hoodie"]
    kind = str(rng.choice(kinds, p=[0.24, 0.2, 0.12, 0.14, 0.18, 0.12]))
    cloth, words = _cloth(
        rng, 0.85 if kind != "cardigan" else 0.5, _SOBER if kind in ("blazer", "coat") else tuple(PALETTE)
    )
    if kind == "denim jacket":
        words = str(rng.choice(["blue", "light blue", "navy", "black"]))
        cloth = _denim(rng, words)
    hem = {"coat": rng.uniform(-0.42, -0.15), "blazer": -0.03, "cardigan": -0.02}.get(kind, 0.01) + rng.normal(0, 0.012)
    return Garment(
        article(f"{words} {kind}"),
        kind,
        cloth,
        0.99,
        float(hem),
        0.072,
        0.0,
        0.027,
        0.02 if kind == "coat" else 0.004,
        gap=float(rng.uniform(0.02, 0.1)),
        trim=_plain(rng, "dark grey"),
    )


def random_lower(rng: np.random.Generator, female: bool) -> Garment:
    """Draw trousers, shorts, leggings or a skirt."""
    kinds = ["jeans", "trousers", "sweatpants", "shorts", "leggings", "skirt"]
    chances = [0.3, 0.18, 0.07, 0.13, 0.09, 0.23] if female else [0.38, 0.31, 0.12, 0.19, 0.0, 0.0]
    kind = str(rng.choice(kinds, p=chances))
    detail = ""
    if kind == "jeans":
        name = str(rng.choice(["navy", "blue", "light blue", "black", "grey"]))
        cloth, words = _denim(rng, name), f"{name} jeans"
        detail = "pocket"
    else:
        cloth, words = _cloth(
            rng,
            {"trousers": 0.85, "sweatpants": 0.9, "leggings": 0.75}.get(kind, 0.55),
            _SOBER if kind == "trousers" else tuple(PALETTE),
        )
        words = f"{words} {kind}"
        detail = "piping" if kind == "sweatpants" and rng.random() < 0.5 else "pocket"
    hem = {"shorts": rng.uniform(-0.38, -0.2), "skirt": rng.uniform(-0.6, -0.16), "leggings": -0.72}
    low = hem.get(kind, rng.uniform(-0.775, -0.74))
    loose = {"leggings": 0.004, "jeans": rng.uniform(0.006, 0.012)}.get(kind, rng.uniform(0.01, 0.02))
    flare = {"shorts": 0.02, "leggings": 0.0, "skirt": rng.uniform(0, 0.05)}.get(kind, rng.uniform(0.0, 0.03))
    pleats = int(rng.integers(8, 17)) if kind == "skirt" and rng.random() < 0.6 else 0
    if pleats:
        words = f"pleated {words}"
    return Garment(
        article(words) if kind == "skirt" else words,
        kind,
        cloth,
        hem=float(low),
        loose=float(loose),
        flare=float(flare),
        pleats=pleats,
        trim=_plain(rng, "white"),
        detail=detail,
    )


def random_dress(rng: np.random.Generator) -> tuple[Garment, Garment]:
    """Draw a dress: its bodice with the words, and its skirt without words."""
    cloth, words = _cloth(rng, 0.35)
    sleeve = float(rng.choice([-0.03, 0.3, 0.97]))
    length = float(rng.uniform(-0.62, -0.2))
    text = article(f"{'long ' if length < -0.5 else ''}{words} dress")
    upper = Garment(
        text, "dress", cloth, sleeve, 0.1, float(rng.uniform(0.075, 0.11)), float(rng.choice([0, 0.08])), 0.008
    )
    pleats = int(rng.integers(8, 15)) if rng.random() < 0.6 else 0
    return upper, Garment("", "dress", cloth, hem=length, loose=0.011, flare=float(rng.uniform(0, 0.05)), pleats=pleats)


def random_shoes(rng: np.random.Generator, female: bool) -> Garment:
    """Draw sneakers, boots, leather shoes, ballet flats, heels or sandals."""
    kinds = ["sneakers", "boots", "leather shoes", "flat shoes", "heels", "sandals"]
    kind = str(
        rng.choice(kinds, p=[0.42, 0.18, 0.08, 0.1, 0.14, 0.08] if female else [0.52, 0.2, 0.22, 0.0, 0.0, 0.06])
    )
    names: tuple[str, ...] = ("white", "black", "grey", "red", "navy", "beige", "blue", "green")
    names = {
        "leather shoes": ("black", "brown"),
        "sandals": ("brown", "black", "beige"),
        "boots": ("black", "brown", "beige"),
    }.get(kind, names)
    name = str(rng.choice(names))
    top = {"sneakers": -0.742, "boots": rng.uniform(-0.69, -0.5), "leather shoes": -0.755}.get(kind, -0.768)
    white = kind == "sneakers" and rng.random() < 0.7
    sole = material(rng, "plain", [linear(np.array((222, 222, 216) if white else (34, 30, 27)))], 0.1, 0.05)
    return Garment(f"{name} {kind}", kind, _plain(rng, name, 0.06), hem=float(top), loose=0.007, trim=sole)
