"""Random natural poses: stances for the legs, gestures for the arms, fitted to each body's joints.

The person faces -y; x is to their left. Targets of gestures are given on the template's skin, so that hands touch hips,
chins and thighs of every build.

Each function of a stance or gesture sets rotations of a `_Sketch` and returns its words for the caption, or "".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffbody_ref.data.synthetic.body import body_model
from diffbody_ref.data.synthetic.skeleton import Rotations, Skeleton, rotation

_SIDES = (("L", 1.0), ("R", -1.0))


@dataclass(frozen=True)
class Pose:
    """A pose.

    Attributes:
        rotations: rotations by bone name, see `BodyModel.pose`.
        words: words for the caption.
        support: what the person needs to sit on or lean against: "", "seat", "wall" or "rail".
    """

    rotations: Rotations
    words: str
    support: str


@dataclass
class _Sketch:
    """A pose that is being made.

    Attributes:
        rng: source of randomness.
        bones: skeleton of the body.
        out: the rotations so far.
        size: size of the body relative to the template.
        held: sides ("L", "R") of the hands that hold something.
    """

    rng: np.random.Generator
    bones: Skeleton
    out: Rotations
    size: float
    held: tuple[str, ...]

    def uniform(self, low: float, high: float) -> float:
        """Draw a number between `low` and `high`."""
        return float(self.rng.uniform(low, high))

    def place(self, bone: str, template: tuple[float, float, float], off: tuple[float, float, float]) -> np.ndarray:
        """A point near the skin of a bone in the current pose, in world metres.

        Args:
            bone: name of the bone with which the point moves.
            template: template position of the skin.
            off: offset from the skin in the upright body, scaled with the body's size.
        """
        return self.bones.at(self.out, bone, self.bones.skin(template) + np.array(off) * self.size)

    def direction(self, bone: str, vector: tuple[float, float, float]) -> np.ndarray:
        """A direction in the upright body, turned with a bone to the current pose."""
        return self.bones.turn(self.out, bone) @ np.array(vector, float)


def _ankle_below(s: _Sketch, side: str, x: float, y: float, share: float) -> float:
    """The height of an ankle at (x, y), from the middle of the hips, for a leg stretched to a share of its length."""
    b = s.bones
    hip, knee, ankle = (b.heads[f"{name}.{side}"] for name in ("upperleg01", "lowerleg01", "foot"))
    length = (np.linalg.norm(knee - hip) + np.linalg.norm(ankle - knee)) * share
    start = b.at(s.out, f"upperleg01.{side}")
    flat = (start[0] - x) ** 2 + (start[1] - y) ** 2
    return float(start[2] - np.sqrt(max(length**2 - flat, 0.01)))


def _stand(s: _Sketch) -> str:
    """Stand on both feet, or with the weight on one leg, whose hip moves out and up while the other knee is loose."""
    one = s.rng.random() < 0.6
    bearing = str(s.rng.choice(["L", "R"]))
    if one:
        tilt = s.uniform(0.03, 0.1) * (1 if bearing == "L" else -1)
        s.out["root"] = rotation((0, -tilt, 0))
        s.out["spine04"], s.out["spine02"] = rotation((0, 0.7 * tilt, 0)), rotation((0, 0.7 * tilt, 0))
    wide = s.uniform(0.07, 0.15) * s.size
    ground = 0.0
    for side in (bearing, "R" if bearing == "L" else "L"):
        sign = dict(_SIDES)[side]
        if side == bearing:
            x, y, turn = sign * (0.045 * s.size if one else wide), 0.0, s.uniform(0.05, 0.3)
            ground = z = _ankle_below(s, side, x, y, 0.995)
        else:
            x, y, turn = (
                sign * (wide + 0.04 * s.size * one),
                s.uniform(-0.16, 0.06) * s.size * one,
                s.uniform(0.1, 0.55),
            )
            z = ground
        s.bones.reach_leg(s.out, side, np.array([x, y, z]), (0.5 * sign * turn, -1, 0))
        s.bones.aim_foot(s.out, side, turn)
    return "standing"


def _walk(s: _Sketch) -> str:
    """A moment of a step: both feet on the ground, or one swinging past the other."""
    ahead = str(s.rng.choice(["L", "R"]))
    stride, swing = s.uniform(0.4, 0.72) * s.size, s.rng.random() < 0.4
    sign = dict(_SIDES)[ahead]
    s.out["root"] = rotation((0.03, 0, -0.12 * sign))
    s.out["spine02"] = rotation((0, 0, 0.24 * sign))
    near = 0.06 * s.size
    if swing:
        legs = {
            ahead: (-0.04 * s.size, 0.0, 0.0),
            _other(ahead): (s.uniform(0.05, 0.25) * s.size, s.uniform(0.08, 0.16) * s.size, 0.6),
        }
    else:
        legs = {
            ahead: (-0.5 * stride, 0.0, -s.uniform(0.0, 0.25)),
            _other(ahead): (0.5 * stride, 0.06 * s.size, s.uniform(0.5, 0.8)),
        }
    ground = 0.0
    for side, (y, lift, pitch) in legs.items():
        x = near * dict(_SIDES)[side]
        if side == ahead:
            ground = _ankle_below(s, side, x, y, 0.985)
        s.bones.reach_leg(s.out, side, np.array([x, y, ground + lift]), (0, -1, 0))
        s.bones.aim_foot(s.out, side, 0.1, pitch)
    return "walking"


def _run(s: _Sketch) -> str:
    """Run: push off with one foot, with the other knee up."""
    push = str(s.rng.choice(["L", "R"]))
    sign = dict(_SIDES)[push]
    s.out["root"] = rotation((s.uniform(0.1, 0.22), 0, 0.15 * sign))
    s.out["spine02"] = rotation((0, 0, -0.3 * sign))
    x, y = 0.05 * s.size, 0.34 * s.size
    ground = _ankle_below(s, push, x * sign, y, 0.97)
    s.bones.reach_leg(s.out, push, np.array([x * sign, y, ground]), (0, -1, 0))
    s.bones.aim_foot(s.out, push, 0.05, 0.75)
    s.bones.reach_leg(
        s.out,
        _other(push),
        np.array([-x * sign, s.uniform(-0.05, 0.25) * s.size, ground + s.uniform(0.28, 0.42) * s.size]),
        (0, -1, 0.3),
    )
    s.bones.aim_foot(s.out, _other(push), 0.05, 0.5)
    return "running"


def _sit(s: _Sketch) -> str:
    """Sit: thighs about level, feet on the ground."""
    lean = s.uniform(-0.15, 0.3)
    s.out["root"] = rotation((-0.12, 0, 0))
    s.out["spine04"], s.out["spine02"] = (
        rotation((0.5 * lean + 0.1, 0, 0)),
        rotation((0.5 * lean, 0, s.rng.normal(0, 0.1))),
    )
    wide = s.uniform(0.0, 0.14) * s.size
    for side, sign in _SIDES:
        b = s.bones
        thigh = np.linalg.norm(b.heads[f"lowerleg01.{side}"] - b.heads[f"upperleg01.{side}"])
        shin = np.linalg.norm(b.heads[f"foot.{side}"] - b.heads[f"lowerleg01.{side}"])
        hip = b.at(s.out, f"upperleg01.{side}")
        y = hip[1] - thigh - s.uniform(-0.12, 0.16) * s.size
        target = np.array([hip[0] + sign * wide, y, hip[2] - 0.97 * shin])
        b.reach_leg(s.out, side, target, (0.35 * sign * (wide > 0.05), -0.5, 1))
        b.aim_foot(s.out, side, s.uniform(0.0, 0.3))
    return "sitting"


def _lean_back(s: _Sketch) -> str:
    """Lean with the back against something, feet in front of it."""
    tilt = s.uniform(0.08, 0.16)
    s.out["root"] = rotation((-tilt, 0, 0))
    ground = 0.0
    for side, sign in _SIDES:
        x, y = sign * s.uniform(0.07, 0.13) * s.size, -s.uniform(0.1, 0.2) * s.size
        if side == "L":
            ground = _ankle_below(s, side, x, y, 0.985)
        s.bones.reach_leg(s.out, side, np.array([x, y, ground]), (0.1 * sign, -1, 0))
        s.bones.aim_foot(s.out, side, s.uniform(0.0, 0.3))
    s.out["spine02"] = rotation((0.6 * tilt, 0, 0))
    return "leaning back"


def _lean_on_rail(s: _Sketch) -> str:
    """Bend forwards with both hands on a rail in front of the body."""
    words = _stand(s)
    bend = s.uniform(0.2, 0.4)
    s.out["root"] = s.out.get("root", np.eye(3))
    s.out["spine05"], s.out["spine03"] = rotation((0.5 * bend, 0, 0)), rotation((0.5 * bend, 0, 0))
    for side, sign in _SIDES:
        target = s.place("root", (0.19 * sign, -0.12, 0.08), (0.03 * sign, -0.28, 0.0))
        s.bones.reach_arm(s.out, side, target, (sign, 0.5, -0.4))
        s.bones.aim_hand(s.out, side, np.array([-0.2 * sign, -1, 0.0]), np.array([0, 0, -1.0]))
    return words.replace("standing", "leaning on a rail")


def _other(side: str) -> str:
    return "R" if side == "L" else "L"


# Gestures of one arm on a side, "L" or "R"; `sign` is 1 for the left, -1 for the right.


def _arm_down(s: _Sketch, side: str, sign: float) -> str:
    """The arm hangs down."""
    target = s.place(
        "spine05",
        (0.185 * sign, -0.03, -0.1),
        (s.uniform(0.025, 0.06) * sign, s.uniform(-0.09, 0.03), s.uniform(-0.02, 0.06)),
    )
    s.bones.reach_arm(s.out, side, target, (0.35 * sign, 1, 0))
    fingers = np.array([-0.08 * sign, -0.15 + s.uniform(-0.1, 0.1), -1])
    s.bones.aim_hand(s.out, side, fingers, np.array([-1.0 * sign, s.uniform(0.0, 0.5), 0]))
    return ""


def _arm_swing(s: _Sketch, side: str, sign: float) -> str:
    """The arm swings opposite to the leg of its side."""
    thigh = s.direction(f"upperleg01.{side}", (0, 0, -1))
    forward = float(np.clip(thigh[1] * 0.9, -0.45, 0.45)) + s.uniform(-0.05, 0.05)
    shoulder = s.bones.at(s.out, f"upperarm01.{side}")
    reach = 0.5 * s.size
    target = shoulder + reach * np.array([0.14 * sign, -forward, -np.sqrt(1 - forward**2)])
    s.bones.reach_arm(s.out, side, target, (0.25 * sign, 1, 0))
    s.bones.aim_hand(s.out, side, target - shoulder - np.array([0, 0.1, 0]), np.array([-1.0 * sign, 0.3, 0]))
    return ""


def _arm_running(s: _Sketch, side: str, sign: float) -> str:
    """The bent arm of a runner, opposite to the leg of its side."""
    thigh = s.direction(f"upperleg01.{side}", (0, 0, -1))
    back = float(np.clip(-thigh[1], -0.6, 0.6))
    shoulder = s.bones.at(s.out, f"upperarm01.{side}")
    target = shoulder + np.array([0.0, -0.22 + 0.3 * back, -0.26 + 0.1 * max(-back, 0)]) * s.size
    s.bones.reach_arm(s.out, side, target, (0.4 * sign, 1, -0.3))
    s.bones.aim_hand(s.out, side, np.array([-0.3 * sign, -1, 0.4]), np.array([-1.0 * sign, 0, 0]))
    return ""


def _hand_on_hip(s: _Sketch, side: str, sign: float) -> str:
    target = s.place("root", (0.155 * sign, 0.01, 0.115), (0.06 * sign, 0.05, 0.02))
    s.bones.reach_arm(s.out, side, target, (1.0 * sign, 0.6, 0))
    s.bones.aim_hand(
        s.out, side, s.direction("root", (-0.25 * sign, -0.85, -0.5)), s.direction("root", (-1.0 * sign, 0.1, -0.3))
    )
    return "a hand on the hip"


def _hand_in_pocket(s: _Sketch, side: str, sign: float) -> str:
    target = s.place("root", (0.165 * sign, -0.04, 0.045), (0.035 * sign, -0.01, 0.02))
    s.bones.reach_arm(s.out, side, target, (0.7 * sign, 1, 0))
    leg = f"upperleg01.{side}"
    s.bones.aim_hand(s.out, side, s.direction(leg, (-0.3 * sign, -0.12, -1)), s.direction(leg, (-1.0 * sign, 0.3, 0)))
    return "a hand in the pocket"


def _wave(s: _Sketch, side: str, sign: float) -> str:
    s.out[f"shoulder01.{side}"] = rotation((0, -0.25 * sign, 0))
    shoulder = s.bones.at(s.out, f"upperarm01.{side}")
    target = shoulder + np.array([sign * s.uniform(0.12, 0.34), s.uniform(-0.2, -0.05), s.uniform(0.12, 0.42)]) * s.size
    s.bones.reach_arm(s.out, side, target, (0.8 * sign, 0.1, -0.6))
    s.bones.aim_hand(s.out, side, np.array([0.25 * sign + s.rng.normal(0, 0.2), -0.1, 1]), np.array([0, -1.0, 0]))
    return "an arm raised"


def _hand_at_face(s: _Sketch, side: str, sign: float) -> str:
    if s.rng.random() < 0.5:  # the chin
        target = s.place("head", (0.02 * sign, -0.13, 0.62), (0.035 * sign, -0.06, -0.115))
        fingers, palm, words = (-0.15 * sign, 0.25, 1.0), (-0.5 * sign, 0.9, 0.0), "a hand at the chin"
    else:  # ear or cheek, as with a telephone
        target = s.place("head", (0.07 * sign, -0.08, 0.67), (0.07 * sign, -0.03, -0.09))
        fingers, palm, words = (-0.15 * sign, 0.2, 1.0), (-1.0 * sign, 0.3, 0.1), "a hand at the ear"
    s.bones.reach_arm(s.out, side, target, (0.6 * sign, -0.1, -1))
    s.bones.aim_hand(s.out, side, s.direction("head", fingers), s.direction("head", palm))
    return words


def _hand_on_head(s: _Sketch, side: str, sign: float) -> str:
    s.out[f"shoulder01.{side}"] = rotation((0, -0.3 * sign, 0))
    target = s.place("head", (0.07 * sign, -0.04, 0.80), (0.13 * sign, -0.05, 0.03))
    s.bones.reach_arm(s.out, side, target, (1.0 * sign, 0.2, 0.2))
    s.bones.aim_hand(
        s.out, side, s.direction("head", (-1.0 * sign, 0.4, 0.3)), s.direction("head", (-0.5 * sign, 0.3, -1))
    )
    return "a hand at the head"


def _hold_up(s: _Sketch, side: str, sign: float) -> str:
    """Hold the hand up, as if reading a telephone or holding a cup."""
    target = s.place(
        "spine02", (0.09 * sign, -0.13, 0.34), (0.02 * sign, -s.uniform(0.14, 0.24), -s.uniform(-0.02, 0.1))
    )
    s.bones.reach_arm(s.out, side, target, (0.6 * sign, 0.4, -1))
    s.bones.aim_hand(s.out, side, np.array([-0.45 * sign, -0.45, 0.7]), np.array([-0.6 * sign, 0.8, 0.3]))
    return "a hand held up"


def _point(s: _Sketch, side: str, sign: float) -> str:
    shoulder = s.bones.at(s.out, f"upperarm01.{side}")
    direction = np.array([sign * s.uniform(-0.1, 0.9), -1.0, s.uniform(-0.3, 0.4)])
    target = shoulder + direction / np.linalg.norm(direction) * s.uniform(0.4, 0.5) * s.size
    s.bones.reach_arm(s.out, side, target, (0.5 * sign, 0.2, -1))
    s.bones.aim_hand(s.out, side, direction, np.array([-0.6 * sign, 0, -1]))
    return "reaching out"


def _on_thigh(s: _Sketch, side: str, sign: float) -> str:
    leg = f"upperleg01.{side}"
    target = s.place(leg, (0.13 * sign, -0.1, -0.22), (0.0, -0.035, s.uniform(-0.05, 0.1)))
    s.bones.reach_arm(s.out, side, target, (1.0 * sign, 0.6, 0.1))
    s.bones.aim_hand(s.out, side, s.direction(leg, (-0.25 * sign, -0.1, -1)), s.direction(leg, (0, 1, 0)))
    return ""


# Gestures of both arms.


def _crossed(s: _Sketch) -> str:
    first = str(s.rng.choice(["L", "R"]))
    for side, sign in _SIDES:
        out = 0.05 if side == first else 0.115
        target = s.place("spine02", (-0.07 * sign, -0.13, 0.33), (0, -out, -0.05 if side == first else 0.0))
        s.bones.reach_arm(s.out, side, target, (0.9 * sign, 0.25, -0.8))
        fingers = (-1.0, 0.35, 0.35) if side == first else (-1.0, 0.45, -0.1)
        s.bones.aim_hand(
            s.out, side, s.direction("spine02", (fingers[0] * sign, *fingers[1:])), s.direction("spine02", (0, 1, 0))
        )
    return "arms crossed"


def _clasped(s: _Sketch) -> str:
    for side, sign in _SIDES:
        target = s.place("root", (0.05 * sign, -0.13, 0.05), (0.035 * sign, -0.07 - 0.025 * (side == "L"), 0.06))
        s.bones.reach_arm(s.out, side, target, (0.8 * sign, 0.8, 0))
        s.bones.aim_hand(s.out, side, np.array([-0.75 * sign, -0.1, -0.65]), np.array([-0.2 * sign, 1, 0]))
    return "hands clasped"


def _behind_back(s: _Sketch) -> str:
    for side, sign in _SIDES:
        target = s.place("root", (0.06 * sign, 0.13, 0.06), (0.03 * sign, 0.06 + 0.03 * (side == "L"), 0.06))
        s.bones.reach_arm(s.out, side, target, (1.0 * sign, 0.5, 0))
        s.bones.aim_hand(s.out, side, np.array([-0.8 * sign, 0.1, -0.5]), np.array([0.1 * sign, 1.0, 0]))
    return "hands behind the back"


def _both_up(s: _Sketch) -> str:
    for side, sign in _SIDES:
        _wave(s, side, sign)
    return "both arms raised"


def _lap(s: _Sketch) -> str:
    for side, sign in _SIDES:
        target = s.place("root", (0.05 * sign, -0.13, 0.02), (0.06 * sign, -0.12 - 0.02 * (side == "L"), 0.06))
        s.bones.reach_arm(s.out, side, target, (0.9 * sign, 0.6, -0.2))
        s.bones.aim_hand(s.out, side, np.array([-0.7 * sign, -0.7, -0.1]), np.array([0, 0.3, -1]))
    return "hands in the lap"


_Gesture = Callable[[_Sketch, str, float], str]
_STANDING: tuple[tuple[_Gesture, float], ...] = (
    (_arm_down, 0.42),
    (_hand_on_hip, 0.13),
    (_hand_in_pocket, 0.14),
    (_wave, 0.06),
    (_hand_at_face, 0.08),
    (_hand_on_head, 0.03),
    (_hold_up, 0.09),
    (_point, 0.05),
)
_SEATED: tuple[tuple[_Gesture, float], ...] = (
    (_on_thigh, 0.62),
    (_hand_at_face, 0.12),
    (_hold_up, 0.16),
    (_wave, 0.06),
    (_point, 0.04),
)
_PAIRS = {
    "a hand on the hip": "hands on the hips",
    "a hand in the pocket": "hands in the pockets",
    "an arm raised": "both arms raised",
}


def _single_arms(s: _Sketch, choices: tuple[tuple[_Gesture, float], ...]) -> str:
    """Give each arm its own gesture; the second arm often repeats the first one's gesture, if that is usual."""
    weights = np.array([weight for _, weight in choices])
    words: list[str] = []
    first = 0
    for i, (side, sign) in enumerate(_SIDES if s.rng.random() < 0.5 else _SIDES[::-1]):
        number = int(s.rng.choice(len(choices), p=weights / weights.sum()))
        if (
            i == 1
            and s.rng.random() < 0.5
            and choices[first][0] in (_arm_down, _hand_on_hip, _hand_in_pocket, _on_thigh)
        ):
            number = first
        elif i == 1 and choices[first][0] in (_hand_at_face, _hand_on_head, _hold_up, _point) and number == first:
            number = 0
        first = number
        gesture = choices[number][0]
        if side in s.held:
            gesture = _hold_up if choices is _SEATED or s.rng.random() < 0.5 else _arm_down
        word = gesture(s, side, sign)
        if word and word in words:
            words[words.index(word)] = _PAIRS.get(word, word)
        elif word:
            words.append(word)
    return " and ".join(words)


def _arms(s: _Sketch, stance: str) -> str:
    """Choose gestures of the arms that fit a stance."""
    if stance == "running":
        for side, sign in _SIDES:
            _arm_running(s, side, sign)
        return ""
    if stance == "walking" and s.rng.random() < 0.75:
        for side, sign in _SIDES:
            _arm_swing(s, side, sign)
        return ""
    if stance == "sitting":
        return _single_arms(s, _SEATED) if s.held or s.rng.random() < 0.72 else _lap(s)
    both = (_crossed, _clasped, _behind_back, _both_up)
    if not s.held and s.rng.random() < 0.26:
        return both[int(s.rng.choice(4, p=[0.46, 0.22, 0.14, 0.18]))](s)
    return _single_arms(s, _STANDING)


def _fingers(s: _Sketch) -> None:
    """Curl the fingers a little, the little finger most; now and then make a fist or stretch the hand."""
    for side, sign in _SIDES:
        curl = float(s.rng.choice([s.uniform(0.0, 0.15), s.uniform(0.2, 0.55), s.uniform(0.9, 1.2)], p=[0.2, 0.7, 0.1]))
        for finger in range(2, 6):
            for joint in (1, 2, 3):
                bend = curl * (0.7 + 0.1 * finger) * s.uniform(0.85, 1.1) * (0.8 if joint == 1 else 1.0)
                s.out[f"finger{finger}-{joint}.{side}"] = rotation((0, sign * bend, 0))


def random_pose(
    rng: np.random.Generator, phenotype: dict[str, float], seated: bool | None = None, held: tuple[str, ...] = ()
) -> Pose:
    """Draw a pose for a body.

    Args:
        rng: source of randomness.
        phenotype: the body, see `BodyModel.pose`.
        seated: True requires a pose on a seat, False a pose on the feet without support; None allows all.
        held: sides ("L", "R") of the hands that hold something, which therefore hang down or are held up.
    """
    bones = Skeleton(body_model(), phenotype)
    stature = bones.heads["head"][2] - bones.heads["foot.L"][2]
    template = body_model().joints
    s = _Sketch(rng, bones, {}, float(stature / (template["head"][2] - template["foot.L"][2])), held)
    stances = (_stand, _walk, _run, _sit, _lean_back, _lean_on_rail)
    chances = np.array([0.48, 0.18, 0.05, 0.17, 0.07, 0.05])
    if seated is not None:
        chances *= np.array([0, 0, 0, 1, 0, 0]) if seated else np.array([1, 1, 0.3, 0, 0, 0])
    stance = stances[int(rng.choice(len(stances), p=chances / chances.sum()))]
    words = stance(s)
    s.out["spine01"] = rotation(rng.normal(0, [0.03, 0.02, 0.06]))
    turn = rng.normal([0.06, 0, 0], [0.12, 0.07, 0.22])
    if rng.random() < 0.22:
        turn[2] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)  # looking aside
        words += ", looking aside"
    s.out["neck01"], s.out["neck03"], s.out["head"] = (rotation(share * turn) for share in (0.3, 0.3, 0.4))
    if stance is not _lean_on_rail:
        gesture = _arms(s, words.split(",")[0])
        words += f" with {gesture}" if gesture else ""
    _fingers(s)
    support = {_sit: "seat", _lean_back: "wall", _lean_on_rail: "rail"}.get(stance, "")
    return Pose(s.out, words, support)
