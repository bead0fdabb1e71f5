"""Who a synthetic person is: body shape, skin, hair and clothes, drawn once an identity, with their words."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from diffbody_ref.data.synthetic.textures import PALETTE, Material, linear, material, named_colour

_SKIN = (  # sRGB, light to dark
    (238, 202, 178),
    (233, 192, 164),
    (214, 166, 132),
    (188, 136, 100),
    (150, 102, 70),
    (112, 72, 50),
    (78, 50, 36),
)
_HAIR = {
    "black": (24, 20, 18),
    "dark brown": (50, 34, 26),
    "brown": (86, 56, 36),
    "light brown": (128, 92, 60),
    "blond": (196, 160, 104),
    "red": (142, 66, 34),
    "grey": (150, 148, 146),
    "white": (214, 212, 208),
}
_CLOTH_PATTERNS = ("plain", "heather", "striped", "pinstriped", "checked", "dotted", "gradient", "floral", "camouflage")


@dataclass(frozen=True)
class Garment:
    """One garment. Lengths are in template units (see `clothing`).

    Attributes:
        words: "a striped red and white t-shirt".
        cut: "trousers", "skirt" or "dress" hang differently, the rest hugs the body.
        cloth: its material.
        sleeve: where the sleeve ends along the arm, 0 the shoulder, 1 the wrist (uppers).
        hem: height of its lower end, template z.
        neck: neckline radius in metres (uppers), 0: closed up the neck.
        vee: depth of a V at the front, metres.
        loose: offset from the body in metres.
        flare: extra offset at the lower end in metres.
        front: material of an open front, a print or a tie, or None, and its half width in metres.
    """

    words: str
    cut: str
    cloth: Material
    sleeve: float = 0.0
    hem: float = 0.0
    neck: float = 0.0
    vee: float = 0.0
    loose: float = 0.008
    flare: float = 0.0
    front: Material | None = None
    front_width: float = 0.0


@dataclass(frozen=True)
class Hair:
    """Hair and beard.

    Attributes:
        style: "bald", "shaved", "short", "curly", "bob", "long" or "bun".
        volume: thickness in metres.
        length: template z of the ends, 1.0 where no long hair hangs down.
        fringe: how far it hangs over the forehead, metres.
        beard: 0 none, up to 1.
    """

    style: str
    colour: np.ndarray
    volume: float
    length: float
    fringe: float
    beard: float
    words: str
    seed: int


@dataclass(frozen=True)
class Identity:
    """A person, the same in all of their pictures. `phenotype` are anny's; colours are linear RGB."""

    phenotype: dict[str, float]
    look: str
    skin: np.ndarray
    lips: np.ndarray
    iris: np.ndarray
    hair: Hair
    glasses: str
    upper: Garment
    lower: Garment
    shoes: Garment
    hat: Garment | None
    face_words: str


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _cloth(rng: np.random.Generator, plain: float, colours: list[str] | None = None) -> tuple[Material, str]:
    """A cloth and its words: "striped red and white"."""
    names = colours or list(PALETTE)
    first, second, third = (
        str(name) for name in rng.choice(names if len(names) > 2 else list(PALETTE), 3, replace=False)
    )
    if colours:
        first = str(rng.choice(colours))
    pattern = "plain" if rng.random() < plain else str(rng.choice(_CLOTH_PATTERNS))
    tones = [named_colour(rng, name) for name in (first, second, third)]
    if pattern in ("plain", "heather"):
        tones[1] = np.clip(tones[0] * rng.choice([0.45, 2.0]) + 0.01, 0, 0.9)
    if pattern == "checked":
        tones[1] = tones[0] * rng.uniform(0.25, 0.5)
    scale = {"gradient": 0.12, "camouflage": 0.12, "heather": 0.05}.get(pattern, float(np.exp(rng.uniform(-3.5, -2.3))))
    words = {
        "plain": first,
        "heather": f"mottled {first}",
        "camouflage": f"camouflage {first}",
        "checked": f"checked {first}",
    }
    text = words.get(pattern, f"{pattern} {first} and {second}")
    return material(rng, pattern, tones, scale, float(rng.uniform(0.05, 0.16))), text


def _upper(rng: np.random.Generator, female: bool, tucked: bool) -> Garment:
    kinds = ["t-shirt", "long-sleeved top", "shirt", "sweater", "hoodie", "jacket", "tank top", "polo shirt"]
    chances = [0.24, 0.12, 0.14, 0.12, 0.1, 0.12, 0.08, 0.08]
    kind = str(rng.choice(kinds, p=chances))
    sleeve = {"t-shirt": 0.33, "polo shirt": 0.33, "tank top": -0.03}.get(kind, 0.97) + rng.normal(0, 0.02)
    if kind == "shirt" and rng.random() < 0.3:
        sleeve = float(rng.uniform(0.5, 0.7))
    cloth, words = _cloth(rng, 0.75 if kind in ("jacket", "hoodie") else 0.4)
    loose = {"tank top": 0.007, "sweater": 0.018, "hoodie": 0.02, "jacket": 0.022}.get(kind, 0.012)
    hem = 0.1 if tucked else {"jacket": -0.02, "tank top": 0.04}.get(kind, 0.03) + rng.normal(0, 0.015)
    neck = {"hoodie": 0.0, "jacket": 0.06, "shirt": 0.058, "polo shirt": 0.06, "tank top": 0.115}.get(
        kind, rng.uniform(0.065, 0.09)
    )
    vee = {"jacket": rng.uniform(0.1, 0.25), "shirt": 0.04, "polo shirt": 0.04}.get(kind, 0.0)
    if kind in ("t-shirt", "sweater", "long-sleeved top", "tank top") and rng.random() < (0.4 if female else 0.15):
        vee = float(rng.uniform(0.04, 0.1))
    front, width = None, 0.0
    if kind in ("jacket", "hoodie", "shirt", "polo shirt"):
        colour = (
            cloth.colours[0] * rng.choice([0.4, 1.6])
            if kind != "jacket"
            else named_colour(rng, str(rng.choice(list(PALETTE))))
        )
        front, width = (
            material(rng, "plain", [np.clip(colour, 0, 0.9)], 0.1, 0.05),
            0.007 if kind != "jacket" else rng.uniform(0.01, 0.06),
        )
    elif kind in ("t-shirt", "sweater", "long-sleeved top") and rng.random() < 0.35:
        tones = [named_colour(rng, str(name)) for name in rng.choice(list(PALETTE), 3)]
        front, width = (
            material(
                rng,
                str(
                    rng.choice(["shelves", "checked", "flowers", "facade", "floral", "bricks"]).replace(
                        "flowers", "floral"
                    )
                ),
                tones,
                0.05,
                0.05,
            ),
            -rng.uniform(0.05, 0.09),
        )
    if front is not None and width < 0:
        words += " printed"
    return Garment(
        _article(f"{words} {kind}"),
        "upper",
        cloth,
        float(sleeve),
        float(hem),
        float(neck),
        float(vee),
        loose,
        0.0,
        front,
        float(width),
    )


def _lower(rng: np.random.Generator, female: bool) -> Garment:
    kinds = ["jeans", "trousers", "shorts", "leggings", "skirt"]
    kind = str(rng.choice(kinds, p=[0.28, 0.24, 0.18, 0.1, 0.2] if female else [0.4, 0.36, 0.24, 0.0, 0.0]))
    if kind == "jeans":
        name = str(rng.choice(["navy", "blue", "light blue", "black", "grey"]))
        tone = named_colour(rng, name, 0.12)
        cloth, words = material(rng, "heather", [tone, np.clip(tone * 1.9 + 0.03, 0, 0.9)], 0.03, 0.14), f"{name} jeans"
    else:
        cloth, words = _cloth(rng, 0.72)
        words = f"{words} {kind}"
    hem = {"shorts": rng.uniform(-0.38, -0.18), "skirt": rng.uniform(-0.62, -0.14), "leggings": -0.72}.get(
        kind, rng.uniform(-0.77, -0.72)
    )
    loose = {"leggings": 0.004, "jeans": 0.008}.get(kind, rng.uniform(0.008, 0.02))
    flare = {"shorts": 0.02, "leggings": 0.0}.get(kind, rng.uniform(0.0, 0.035))
    return Garment(
        _article(words) if kind == "skirt" else words,
        kind,
        cloth,
        hem=float(hem),
        loose=float(loose),
        flare=float(flare),
    )


def _dress(rng: np.random.Generator) -> tuple[Garment, Garment]:
    cloth, words = _cloth(rng, 0.35)
    hem = float(rng.uniform(-0.62, -0.2))
    text = _article(f"{words} dress")
    sleeve = float(rng.choice([-0.03, 0.3, 0.97]))
    upper = Garment(
        text, "upper", cloth, sleeve, 0.1, float(rng.uniform(0.07, 0.115)), float(rng.choice([0, 0.08])), 0.008
    )
    return upper, Garment("", "skirt", cloth, hem=hem, loose=0.01, flare=float(rng.uniform(0, 0.04)))


def _shoes(rng: np.random.Generator, female: bool) -> Garment:
    kind = str(
        rng.choice(
            ["sneakers", "boots", "leather shoes", "flat shoes"],
            p=[0.5, 0.2, 0.2, 0.1] if female else [0.55, 0.2, 0.25, 0.0],
        )
    )
    name = str(
        rng.choice(
            ["black", "brown"]
            if kind == "leather shoes"
            else ["white", "black", "grey", "red", "brown", "navy", "beige"]
        )
    )
    cloth = material(rng, "plain", [named_colour(rng, name)], 0.1, 0.08)
    sole = (
        linear(np.array((225, 225, 220)))
        if kind == "sneakers" and rng.random() < 0.7
        else linear(np.array((30, 28, 26)))
    )
    top = {"sneakers": -0.735, "boots": rng.uniform(-0.68, -0.52), "leather shoes": -0.75, "flat shoes": -0.765}[kind]
    return Garment(
        f"{name} {kind}", "shoes", cloth, hem=float(top), loose=0.009, front=material(rng, "plain", [sole], 0.1, 0.05)
    )


def _hair(rng: np.random.Generator, female: bool, old: bool, tone: float) -> Hair:
    styles = ["bald", "shaved", "short", "curly", "bob", "long", "bun"]
    style = str(
        rng.choice(
            styles, p=[0, 0.02, 0.14, 0.1, 0.2, 0.38, 0.16] if female else [0.08, 0.16, 0.52, 0.12, 0.06, 0.06, 0.0]
        )
    )
    names = ["grey", "white", "brown"] if old else (["black", "dark brown"] if tone > 3.5 else list(_HAIR)[:6])
    name = str(rng.choice(names))
    colour = np.clip(linear(np.array(_HAIR[name])) * np.exp(rng.normal(0, 0.12, 3)), 0.004, 0.9).astype(np.float32)
    volume = {
        "shaved": 0.003,
        "short": rng.uniform(0.01, 0.024),
        "curly": rng.uniform(0.03, 0.06),
        "bob": 0.016,
        "long": 0.014,
        "bun": 0.009,
    }
    length = {"bob": rng.uniform(0.58, 0.66), "long": rng.uniform(0.28, 0.55)}.get(style, 1.0)
    beard = float(rng.uniform(0.3, 1.0)) if not female and rng.random() < 0.35 else 0.0
    words = {"bald": "a bald head", "shaved": f"shaved {name} hair", "bun": f"{name} hair in a bun"}.get(
        style, f"{style} {name} hair"
    )
    words = words.replace("bob ", "shoulder-length ")
    return Hair(
        style,
        colour,
        float(volume.get(style, 0.0)),
        float(length),
        float(rng.uniform(0, 0.025)),
        beard,
        words,
        int(rng.integers(1 << 20)),
    )


def random_identity(rng: np.random.Generator) -> Identity:
    """Draw a person."""
    gender, age = (
        rng.uniform(0, 1) * 0.3 + 0.7 * float(rng.random() < 0.5),
        rng.choice([0.36, 0.55, 0.68, 0.85, 0.97], p=[0.07, 0.13, 0.52, 0.18, 0.1]),
    )
    age = float(np.clip(age + rng.normal(0, 0.04), 0.33, 1.0))
    female, old, child = gender > 0.5, age > 0.88, age < 0.45
    race = rng.dirichlet([0.6, 0.6, 0.6])
    tone = float(np.clip(race @ [4.8, 1.6, 1.0] + rng.normal(0, 0.7), 0, 5.99))
    low = int(tone)
    skin = linear(np.array(_SKIN[low])) * (low + 1 - tone) + linear(np.array(_SKIN[low + 1])) * (tone - low)
    phenotype = {
        "gender": float(gender),
        "age": age,
        "african": float(race[0]),
        "asian": float(race[1]),
        "caucasian": float(race[2]),
    }
    phenotype |= {
        key: float(np.clip(rng.normal(0.5, 0.17), 0.08, 0.92)) for key in ("muscle", "weight", "height", "cupsize")
    }
    phenotype |= {"proportions": float(rng.uniform(0.45, 1.0)), "firmness": float(rng.uniform(0.3, 0.9))}
    noun = ("girl" if female else "boy") if child else ("woman" if female else "man")
    age_word = "" if child else "an elderly " if old else "a young " if age < 0.72 else "a middle-aged "
    build = (
        " with a heavy build"
        if phenotype["weight"] > 0.68
        else " with a slim build"
        if phenotype["weight"] < 0.3
        else ""
    )
    hair = _hair(rng, female, old, tone)
    glasses = str(rng.choice(["", "glasses", "sunglasses"], p=[0.76, 0.17, 0.07]))
    hat = None
    if rng.random() < 0.14:
        cloth, words = _cloth(rng, 0.8)
        hat = Garment(_article(f"{words} beanie"), "hat", cloth, loose=0.014)
    if female and rng.random() < 0.2:
        upper, lower = _dress(rng)
    else:
        upper, lower = _upper(rng, female, bool(rng.random() < 0.25)), _lower(rng, female)
        if lower.cut == "skirt":
            upper = replace(upper, hem=0.1)  # tucked in
    beard = "" if hair.beard == 0 else "stubble" if hair.beard < 0.6 else "a beard"
    extras = [w for w in (beard, glasses, hat.words if hat else "") if w]
    face = "wearing " + " and ".join(extras) if extras and extras[0] != beard else " and ".join(extras)
    lips = (
        skin * np.array([1.0, 0.55, 0.55])
        if not female or rng.random() < 0.5
        else np.array([0.45, 0.08, 0.1]) * rng.uniform(0.5, 1.2)
    )
    iris = linear(np.array([(70, 44, 26), (96, 128, 160), (90, 110, 70)][int(rng.choice(3, p=[0.7, 0.2, 0.1]))]))
    return Identity(
        phenotype=phenotype,
        look=(f"a {noun}" if child else f"{age_word}{noun}") + build,
        skin=skin.astype(np.float32),
        lips=lips.astype(np.float32),
        iris=iris,
        hair=hair,
        glasses=glasses,
        upper=upper,
        lower=lower,
        shoes=_shoes(rng, female),
        hat=hat,
        face_words=face,
    )
