"""Random accessories: what people wear and carry besides clothes. `pieces` builds their meshes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffbody_ref.data.synthetic.textures import Material, linear, material, named_colour


@dataclass(frozen=True)
class Thing:
    """One accessory.

    Attributes:
        kind: "glasses", "cap", "phone" ...
        words: words for the caption, such as "round black glasses".
        slot: "face", "hat", "body" or "hand"; determines where the caption names it.
        cloth: main material.
        trim: second material.
        shape: variant in [0, 1].
        size: factor on the size, about 1.
        side: 1 is the person's left, -1 their right.
    """

    kind: str
    words: str
    slot: str
    cloth: Material
    trim: Material
    shape: float
    size: float
    side: int


def _simple(rng: np.random.Generator, name: str, grain: float = 0.04) -> Material:
    """A plain material near a colour of `PALETTE`."""
    return material(rng, "plain", [named_colour(rng, name)], 0.1, grain)


def _thing(
    rng: np.random.Generator, kind: str, words: str, slot: str, cloth: Material, trim: Material, size: float = 1.0
) -> Thing:
    """A thing of random shape on a random side."""
    return Thing(kind, words, slot, cloth, trim, float(rng.random()), size, int(rng.choice([-1, 1])))


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


_BRIGHT = (
    "white",
    "grey",
    "dark grey",
    "black",
    "navy",
    "blue",
    "teal",
    "green",
    "olive",
    "beige",
    "brown",
    "orange",
    "yellow",
    "red",
    "burgundy",
    "pink",
    "purple",
)
_LEATHER = ("black", "brown", "beige", "burgundy", "red", "navy", "grey")


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return str(rng.choice(names))


def random_things(rng: np.random.Generator, female: bool, bare_neck: bool) -> tuple[Thing, ...]:
    """Draw a person's accessories: at most one pair of glasses, one hat, one scarf, one bag and one held thing."""
    things = []
    draw = rng.random()
    if draw < 0.26:
        sun = draw < 0.07
        name = _pick(rng, ("black", "black", "brown", "red", "blue", "grey", "beige"))
        shape = float(rng.random())
        style = ("round", "rectangular", "large")[min(int(shape * 3), 2)]
        words = f"{style} {'sunglasses' if sun else f'{name} glasses'}"
        lens = material(rng, "plain", [linear(np.array((16, 15, 15)))], 0.1, 0.01)
        things.append(
            Thing(
                "sunglasses" if sun else "glasses",
                words,
                "face",
                _simple(rng, name, 0.01),
                lens,
                shape,
                float(rng.uniform(0.92, 1.1)),
                1,
            )
        )
    if rng.random() < 0.2:
        kind = str(rng.choice(["beanie", "cap", "brimmed hat"], p=[0.35, 0.4, 0.25]))
        name, second = _pick(rng, _BRIGHT), _pick(rng, _BRIGHT)
        cloth = _simple(rng, name, 0.08)
        trim = cloth if rng.random() < 0.5 else _simple(rng, second, 0.06)
        if kind == "beanie":
            tones = [named_colour(rng, name), named_colour(rng, second)]
            pattern = "striped" if rng.random() < 0.25 else "knit"
            cloth = material(rng, pattern, tones, 0.05 if pattern == "striped" else 0.012, 0.1)
            name = f"striped {name}" if pattern == "striped" else f"knitted {name}"
        if kind == "brimmed hat":
            name = _pick(rng, ("beige", "black", "brown", "white", "navy", "khaki"))
            cloth, trim = _simple(rng, name, 0.1), _simple(rng, _pick(rng, ("black", "brown", "red", "navy")))
        things.append(_thing(rng, kind, article(f"{name} {kind}"), "hat", cloth, trim))
    if rng.random() < 0.09 and bare_neck:
        name, second = _pick(rng, _BRIGHT), _pick(rng, _BRIGHT)
        pattern = str(rng.choice(["knit", "checked", "striped", "plain"]))
        cloth = material(
            rng,
            pattern,
            [named_colour(rng, name), named_colour(rng, second)],
            0.012 if pattern == "knit" else 0.06,
            0.1,
        )
        words = {"knit": f"knitted {name}", "plain": name}.get(pattern, f"{pattern} {name}")
        things.append(_thing(rng, "scarf", article(f"{words} scarf"), "body", cloth, cloth))
    if female and rng.random() < 0.35:
        cloth = material(
            rng, "plain", [linear(np.array(((212, 175, 95), (200, 202, 205))[int(rng.random() < 0.5)]))], 0.1, 0
        )
        things.append(_thing(rng, "earrings", "earrings", "face", cloth, cloth))
    draw = rng.random()
    if draw < 0.26:
        kind = "backpack" if draw < 0.12 else "shoulder bag"
        names = _BRIGHT if kind == "backpack" else _LEATHER
        name, second = _pick(rng, names), _pick(rng, names)
        cloth = _simple(rng, name, 0.08)
        trim = cloth if rng.random() < 0.5 else _simple(rng, second, 0.06)
        things.append(_thing(rng, kind, article(f"{name} {kind}"), "body", cloth, trim, float(rng.uniform(0.85, 1.1))))
    if rng.random() < 0.3:
        things.append(_random_held(rng, female))
    return tuple(things)


def _random_held(rng: np.random.Generator, female: bool) -> Thing:
    kinds = ["phone", "cup", "bottle", "umbrella", "book", "handbag", "shopping bag"]
    kind = str(
        rng.choice(
            kinds, p=[0.2, 0.17, 0.13, 0.1, 0.13, 0.17, 0.1] if female else [0.26, 0.2, 0.18, 0.1, 0.14, 0.0, 0.12]
        )
    )
    name, second = _pick(rng, _LEATHER if kind == "handbag" else _BRIGHT), _pick(rng, _BRIGHT)
    cloth, trim = _simple(rng, name), _simple(rng, second)
    words = article(f"{name} {kind}")
    if kind == "phone":
        cloth, trim, words = (
            _simple(rng, name),
            material(rng, "plain", [linear(np.array((22, 24, 30)))], 0.1, 0.0),
            "a phone",
        )
    if kind == "cup":
        trim, words = _simple(rng, "white"), article(f"{name} paper cup")
    if kind == "book":
        trim = _simple(rng, "white")
    if kind == "handbag":
        trim = cloth
    if kind == "umbrella":
        trim, words = _simple(rng, "brown"), article(f"closed {name} umbrella")
    return _thing(rng, kind, words, "hand", cloth, trim, float(rng.uniform(0.85, 1.1)) if "bag" in kind else 1.0)
