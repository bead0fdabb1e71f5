"""Random natural poses as rotations of anny's bones, relative to its rest pose (arms hanging 40 degrees out)."""

from __future__ import annotations

import numpy as np

_SIDES = (("L", 1.0), ("R", -1.0))


def rotation(vector: np.ndarray) -> np.ndarray:
    """(3, 3) matrix of an axis-angle vector in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-8:
        return np.eye(3)
    x, y, z = np.asarray(vector) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _rx(angle: float) -> np.ndarray:
    return rotation(np.array([angle, 0, 0]))


def _ry(angle: float) -> np.ndarray:
    return rotation(np.array([0, angle, 0]))


def _rz(angle: float) -> np.ndarray:
    return rotation(np.array([0, 0, angle]))


def _arm(side: str, out: dict[str, np.ndarray], lower: float, swing: float, elbow: float, twist: float) -> None:
    """lower: towards the trunk (negative raises sideways); swing: forward; elbow: bend; twist: about its own axis."""
    sign = dict(_SIDES)[side]
    along = np.array([0.63 * sign, 0.0, -0.77])
    bend = np.array([-0.77, 0.0, -0.63 * sign])
    share = 0.35 if lower < -0.6 else 0.0  # the shoulder girdle takes part in raising
    out[f"shoulder01.{side}"] = _ry(sign * lower * share)
    out[f"upperarm01.{side}"] = _rx(-swing) @ _ry(sign * lower * (1 - share)) @ rotation(along * twist * sign)
    out[f"lowerarm01.{side}"] = rotation(bend * elbow)


def _leg(side: str, out: dict[str, np.ndarray], swing: float, knee: float, spread: float, turn: float) -> None:
    """swing: forward; knee: bend; spread: sideways; turn: toes outwards. Radians."""
    sign = dict(_SIDES)[side]
    out[f"upperleg01.{side}"] = _rx(-swing) @ _ry(-sign * spread) @ _rz(sign * turn)
    out[f"lowerleg01.{side}"] = _rx(knee)
    out[f"foot.{side}"] = _rx(swing - knee) if swing - knee > -0.6 else _rx(-0.6)


def _walking(rng: np.random.Generator, out: dict[str, np.ndarray]) -> str:
    phase, stride = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.55)
    for side, sign in _SIDES:
        cycle = np.sin(phase) * sign
        lifted = max(0.0, np.cos(phase) * sign)
        _leg(side, out, stride * cycle + 0.25 * lifted, 0.12 + 0.75 * lifted, -0.04, 0.08)
        _arm(side, out, rng.uniform(0.42, 0.55), -0.9 * stride * cycle + 0.05, rng.uniform(0.15, 0.6), 0.0)
    out["spine03"] = _rz(0.15 * np.sin(phase))
    return "walking"


def _standing_legs(rng: np.random.Generator, out: dict[str, np.ndarray]) -> None:
    shift = rng.choice([-1.0, 1.0])
    lean = rng.uniform(0, 0.05) * shift
    relaxed = rng.uniform(0, 0.4) * (rng.random() < 0.6)
    spread = rng.uniform(-0.09, 0.12)
    for side, sign in _SIDES:
        free = sign == shift
        _leg(side, out, 0.55 * relaxed if free else 0.0, relaxed if free else 0.02, spread, rng.uniform(0, 0.25))
    out["spine04"] = _ry(lean)


def _arms_down(rng: np.random.Generator, out: dict[str, np.ndarray]) -> str:
    for side, _ in _SIDES:
        _arm(side, out, rng.uniform(0.32, 0.52), rng.uniform(-0.1, 0.2), rng.uniform(0.05, 0.5), rng.uniform(-0.3, 0.3))
    return "standing"


def _hands_on_hips(rng: np.random.Generator, out: dict[str, np.ndarray]) -> str:
    chosen = ["L", "R"] if rng.random() < 0.5 else [str(rng.choice(["L", "R"]))]
    for side, _ in _SIDES:
        if side in chosen:
            _arm(
                side,
                out,
                rng.uniform(-0.15, 0.1),
                rng.uniform(-0.5, -0.3),
                rng.uniform(1.3, 1.6),
                rng.uniform(-1.3, -0.9),
            )
        else:
            _arm(side, out, rng.uniform(0.38, 0.5), rng.uniform(-0.1, 0.2), rng.uniform(0.1, 0.4), 0.0)
    return "standing with " + ("hands on the hips" if len(chosen) == 2 else "a hand on the hip")


def _raised(rng: np.random.Generator, out: dict[str, np.ndarray]) -> str:
    both = rng.random() < 0.4
    chosen = ["L", "R"] if both else [str(rng.choice(["L", "R"]))]
    for side, _ in _SIDES:
        if side in chosen:
            _arm(
                side,
                out,
                rng.uniform(-2.0, -0.6),
                rng.uniform(-0.1, 0.4),
                rng.uniform(0.1, 1.6),
                rng.uniform(-0.4, 0.6),
            )
        else:
            _arm(side, out, rng.uniform(0.35, 0.5), rng.uniform(-0.1, 0.3), rng.uniform(0.1, 0.6), 0.0)
    return "both arms raised" if both else "one arm raised"


def _bent(rng: np.random.Generator, out: dict[str, np.ndarray]) -> str:
    for side, _ in _SIDES:
        _arm(side, out, rng.uniform(0.25, 0.5), rng.uniform(0.0, 0.7), rng.uniform(0.8, 2.0), rng.uniform(0.0, 0.8))
    return "standing with bent arms"


def _reaching(rng: np.random.Generator, out: dict[str, np.ndarray]) -> str:
    chosen = str(rng.choice(["L", "R"]))
    for side, _ in _SIDES:
        if side == chosen:
            _arm(
                side, out, rng.uniform(-0.1, 0.5), rng.uniform(0.9, 1.6), rng.uniform(0.0, 0.5), rng.uniform(-0.3, 0.5)
            )
        else:
            _arm(side, out, rng.uniform(0.35, 0.5), rng.uniform(-0.1, 0.2), rng.uniform(0.1, 0.9), 0.0)
    return "reaching forward"


def _fingers(rng: np.random.Generator, out: dict[str, np.ndarray]) -> None:
    for side, sign in _SIDES:
        curl = rng.uniform(0.0, 0.9)
        for finger in range(2, 6):
            for joint in (1, 2, 3):
                bend = curl * (0.6 + 0.15 * finger * 0.5) * rng.uniform(0.8, 1.1) * 0.7
                out[f"finger{finger}-{joint}.{side}"] = _ry(sign * bend)
        out[f"wrist.{side}"] = rotation(rng.normal(0, 0.15, 3))


def random_pose(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], str]:
    """Rotations by bone name, and the pose in words."""
    out: dict[str, np.ndarray] = {}
    if rng.random() < 0.35:
        words = _walking(rng, out)
    else:
        _standing_legs(rng, out)
        makers = (_arms_down, _hands_on_hips, _raised, _bent, _reaching)
        words = makers[int(rng.choice(5, p=[0.38, 0.14, 0.18, 0.18, 0.12]))](rng, out)
    _fingers(rng, out)
    out["spine02"] = rotation(rng.normal(0, [0.06, 0.04, 0.08]))
    out["spine05"] = rotation(rng.normal(0, [0.03, 0.03, 0.03]))
    turn = rng.normal(0, [0.14, 0.07, 0.3])
    out["neck01"], out["head"] = rotation(0.4 * turn), rotation(0.6 * turn)
    return out, words
