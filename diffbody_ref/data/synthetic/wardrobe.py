"""The identity of a synthetic person: body, face, skin, hair, clothes and accessories, with words for the caption."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from diffbody_ref.data.synthetic.accessories import Thing, random_things
from diffbody_ref.data.synthetic.face import random_features
from diffbody_ref.data.synthetic.garments import (
    Garment,
    random_dress,
    random_lower,
    random_outer,
    random_shoes,
    random_upper,
)
from diffbody_ref.data.synthetic.hair import Hair, random_hair
from diffbody_ref.data.synthetic.textures import linear

_SKIN = (  # sRGB, light to dark
    (240, 205, 184),
    (234, 192, 166),
    (216, 168, 136),
    (190, 138, 104),
    (152, 104, 74),
    (116, 76, 54),
    (84, 55, 41),
)
_IRIS = {
    "brown": (74, 46, 28),
    "dark brown": (46, 29, 20),
    "blue": (92, 124, 158),
    "green": (92, 112, 74),
    "grey": (110, 120, 126),
}


@dataclass(frozen=True)
class Complexion:
    """Skin and face. Colours are linear RGB, float32 (3,); amounts are in [0, 1].

    Attributes:
        skin: colour of the skin.
        lips: colour of the lips.
        iris: colour of the irises.
        freckles: amount of freckles.
        blush: amount of redness of the cheeks.
        wrinkles: amount of wrinkles.
        makeup: amount of makeup.
        brow: thickness of the eyebrows, a factor about 1.
        seed: seed of the freckles.
    """

    skin: np.ndarray
    lips: np.ndarray
    iris: np.ndarray
    freckles: float
    blush: float
    wrinkles: float
    makeup: float
    brow: float
    seed: int


@dataclass(frozen=True)
class Identity:
    """A person, the same in all of their pictures.

    Attributes:
        phenotype: anny's values for the body by name, see `BodyModel.pose`.
        features: anny's values for the face by name, see `BodyModel.pose`.
        look: words for sex, age and build.
        complexion: skin and face.
        hair: hair and beard.
        upper: garment of the trunk.
        outer: outer garment, or None.
        lower: garment of the legs.
        shoes: shoes.
        things: accessories.
    """

    phenotype: dict[str, float]
    features: dict[str, float]
    look: str
    complexion: Complexion
    hair: Hair
    upper: Garment
    outer: Garment | None
    lower: Garment
    shoes: Garment
    things: tuple[Thing, ...]

    def _things(self, *slots: str) -> list[str]:
        """The words of the accessories in these slots."""
        return [thing.words for thing in self.things if thing.slot in slots]

    @property
    def hat(self) -> Thing | None:
        """The hat, if the person wears one."""
        return next((thing for thing in self.things if thing.slot == "hat"), None)

    def face_words(self, front: bool) -> str:
        """Words for beard, freckles, glasses, earrings and hat; only for the hat if the face is not seen."""
        natural = [self.hair.beard_words, "freckles" if self.complexion.freckles > 0.4 else ""] if front else []
        worn = self._things(*(("face", "hat") if front else ("hat",)))
        phrases = [phrase for phrase in natural if phrase]
        return " and ".join(phrases + ([f"wearing {' and '.join(worn)}"] if worn else []))

    @property
    def upper_words(self) -> str:
        """Words for the garments of the trunk, from the outside inwards, with scarf and bag."""
        over = f"{self.outer.words} over {self.upper.words}" if self.outer else self.upper.words
        carried = " and ".join(self._things("body"))
        return f"{over} with {carried}" if carried else over

    @property
    def hand_words(self) -> str:
        """Words for the held thing, such as "holding a phone in the left hand"; "" if nothing is held."""
        held = next((thing for thing in self.things if thing.slot == "hand"), None)
        return f"holding {held.words} in the {'left' if held.side > 0 else 'right'} hand" if held else ""


def _complexion(rng: np.random.Generator, tone: float, female: bool, age: float) -> Complexion:
    """Draw a complexion; `tone` is the skin's, from 0 (light) to 6 (dark)."""
    low = int(tone)
    skin = linear(np.array(_SKIN[low])) * (low + 1 - tone) + linear(np.array(_SKIN[low + 1])) * (tone - low)
    makeup = float(rng.uniform(0.3, 1.0)) if female and age > 0.5 and rng.random() < 0.5 else 0.0
    natural = skin * np.array([0.86, 0.56, 0.56])
    lipstick = np.array([0.42, 0.07, 0.1]) * rng.uniform(0.5, 1.2) + skin * rng.uniform(0, 0.3)
    names = ("brown", "dark brown") if tone > 3 else ("brown", "dark brown", "blue", "green", "grey")
    light = [0.5, 0.5] if tone > 3 else [0.3, 0.2, 0.25, 0.15, 0.1]
    return Complexion(
        skin=skin.astype(np.float32),
        lips=(natural + (lipstick - natural) * makeup * 0.8).astype(np.float32),
        iris=linear(np.array(_IRIS[str(rng.choice(names, p=light))])),
        freckles=float(rng.uniform(0.2, 1.0)) if tone < 2 and rng.random() < 0.2 else 0.0,
        blush=float(rng.uniform(0.2, 0.8)),
        wrinkles=float(np.clip((age - 0.68) / 0.3, 0, 1) * rng.uniform(0.5, 1.0)),
        makeup=makeup,
        brow=float(rng.uniform(0.75, 1.05) if female else rng.uniform(0.95, 1.35)),
        seed=int(rng.integers(1 << 20)),
    )


def _clothes(rng: np.random.Generator, female: bool) -> tuple[Garment, Garment | None, Garment]:
    """Draw upper, outer and lower garments."""
    outer = random_outer(rng, female) if rng.random() < 0.3 else None
    if female and rng.random() < 0.22:
        upper, lower = random_dress(rng)
    else:
        lower = random_lower(rng, female)
        upper = random_upper(rng, female, lower.kind == "skirt" or rng.random() < 0.25)
    if outer is not None:  # the garments below it have to fit
        upper = replace(upper, loose=min(upper.loose, 0.011), sleeve=min(upper.sleeve, 0.94))
        lower = replace(lower, flare=min(lower.flare, 0.02))
    return upper, outer, lower


def random_identity(rng: np.random.Generator) -> Identity:
    """Draw a person."""
    female = bool(rng.random() < 0.5)
    gender = float(rng.uniform(0.0, 0.18) + (0.82 if female else 0.0))
    age = float(rng.choice([0.36, 0.55, 0.68, 0.85, 0.97], p=[0.06, 0.14, 0.52, 0.18, 0.1]))
    age = float(np.clip(age + rng.normal(0, 0.04), 0.33, 1.0))
    old, child = age > 0.88, age < 0.45
    race = rng.dirichlet([0.6, 0.6, 0.6])
    tone = float(np.clip(race @ [4.8, 1.6, 1.0] + rng.normal(0, 0.6), 0, 5.99))
    phenotype = {"gender": gender, "age": age}
    phenotype |= {"african": float(race[0]), "asian": float(race[1]), "caucasian": float(race[2])}
    for key in ("muscle", "weight", "height", "cupsize"):
        phenotype[key] = float(np.clip(rng.normal(0.5, 0.15), 0.12, 0.88))
    phenotype |= {"proportions": float(rng.uniform(0.5, 1.0)), "firmness": float(rng.uniform(0.4, 0.9))}
    noun = ("girl" if female else "boy") if child else ("woman" if female else "man")
    age_word = "a " if child else "an elderly " if old else "a young " if age < 0.72 else "a middle-aged "
    weight = phenotype["weight"]
    build = " with a heavy build" if weight > 0.66 else " with a slim build" if weight < 0.33 else ""
    upper, outer, lower = _clothes(rng, female)
    things = random_things(rng, female, bare_neck=upper.kind not in ("turtleneck", "hoodie"))
    hair = random_hair(rng, female, old, child, tone)
    return Identity(
        phenotype=phenotype,
        features=random_features(rng),
        look=f"{age_word}{noun}{build}",
        complexion=_complexion(rng, tone, female, age),
        hair=hair,
        upper=upper,
        outer=outer,
        lower=lower,
        shoes=random_shoes(rng, female),
        things=things,
    )
