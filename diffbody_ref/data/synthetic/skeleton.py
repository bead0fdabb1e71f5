"""The joints of a body: their positions in a pose, and the arm and leg rotations that reach a point (two-bone IK)."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.body import BodyModel

Rotations = dict[str, np.ndarray]


def rotation(vector: np.ndarray | tuple[float, float, float]) -> np.ndarray:
    """The rotation matrix (3, 3) of an axis-angle vector in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-8:
        return np.eye(3)
    x, y, z = np.asarray(vector) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def unit(vector: np.ndarray | tuple[float, float, float]) -> np.ndarray:
    """The unit vector in the direction of a vector, float64 (3,)."""
    v = np.asarray(vector, float)
    return v / np.linalg.norm(v)


def _frame(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """An orthonormal basis in columns: `first`, `second` made orthogonal to it, and their cross product."""
    a = unit(first)
    b = unit(second - (second @ a) * a)
    return np.stack([a, b, np.cross(a, b)], 1)


class Skeleton:
    """The joints of a phenotype at rest.

    Rotations are given by bone name, relative to the rest pose, as for `BodyModel.pose`. A bone's world rotation is the
    product of its ancestors' rotations, from the root on, and its own.

    Attributes:
        heads: (3,), the position of each bone's head at rest, by bone name.
    """

    def __init__(self, model: BodyModel, phenotype: dict[str, float]) -> None:
        self._vertices, self.heads = model.rest(phenotype)
        names = list(model.bones)
        parents = [int(p) for p in model.model.bone_parents]
        self._parent = {name: names[p] if p >= 0 else "" for name, p in zip(names, parents, strict=True)}
        self._template, self._skin = model.body.template, model.body.source.indices

    def skin(self, template: tuple[float, float, float]) -> np.ndarray:
        """The rest position (3,) of the skin vertex that is nearest to a point of the template."""
        number = int(((self._template - np.array(template)) ** 2).sum(1).argmin())
        return self._vertices[self._skin[number]].astype(float)

    def turn(self, rotations: Rotations, bone: str) -> np.ndarray:
        """The world rotation (3, 3) of a bone; the identity for ""."""
        if not bone:
            return np.eye(3)
        return self.turn(rotations, self._parent[bone]) @ rotations.get(bone, np.eye(3))

    def at(self, rotations: Rotations, bone: str, point: np.ndarray | None = None) -> np.ndarray:
        """The position in a pose of a bone's head, or of a point that moves with the bone, given by its rest position.

        The root's head stays where it is at rest; `BodyModel.pose` puts the whole body on the ground afterwards.
        """
        parent = self._parent[bone]
        head = self.heads[bone] if not parent else self.at(rotations, parent, self.heads[bone])
        return head if point is None else head + self.turn(rotations, bone) @ (point - self.heads[bone])

    def _reach(
        self, out: Rotations, bones: tuple[str, str, str], target: np.ndarray, pole: np.ndarray, hinge: np.ndarray
    ) -> None:
        """Rotate two bones so that the head of the third reaches a target, or comes as near to it as possible.

        Args:
            out: the rotations, changed in place.
            bones: names of the three bones.
            target: (3,), the target.
            pole: (3,), direction in which the middle joint bends.
            hinge: (3,), axis at rest about which the middle joint bends.
        """
        upper, lower, _ = bones
        rest = [self.heads[name] for name in bones]
        a, b = np.linalg.norm(rest[1] - rest[0]), np.linalg.norm(rest[2] - rest[1])
        start = self.at(out, upper)
        direction = target - start
        distance = float(np.clip(np.linalg.norm(direction), abs(a - b) * 1.05 + 0.02, 0.998 * (a + b)))
        direction = unit(direction)
        side = unit(pole - (pole @ direction) * direction)
        along = (a * a - b * b + distance * distance) / (2 * distance)
        middle = along * direction + np.sqrt(np.maximum(a * a - along * along, 0.0)) * side
        first, second = unit(middle), unit(distance * direction - middle)
        axis = np.cross(side, direction)
        parent = self.turn(out, self._parent[upper])
        world = _frame(first, axis) @ _frame(rest[1] - rest[0], hinge).T
        out[upper] = parent.T @ world
        out[lower] = world.T @ (_frame(second, axis) @ _frame(rest[2] - rest[1], hinge).T)

    def reach_arm(
        self, out: Rotations, side: str, target: np.ndarray, pole: np.ndarray | tuple[float, float, float]
    ) -> None:
        """Move the wrist of a side ("L" or "R") to `target` (3,), with the elbow bent towards `pole`."""
        bones = (f"upperarm01.{side}", f"lowerarm01.{side}", f"wrist.{side}")
        upper, lower, end = (self.heads[name] for name in bones)
        self._reach(out, bones, target, np.asarray(pole, float), np.cross(lower - upper, end - lower))

    def reach_leg(
        self, out: Rotations, side: str, target: np.ndarray, pole: np.ndarray | tuple[float, float, float]
    ) -> None:
        """Move the ankle of a side to `target` (3,), with the knee bent towards `pole`."""
        bones = (f"upperleg01.{side}", f"lowerleg01.{side}", f"foot.{side}")
        self._reach(out, bones, target, np.asarray(pole, float), np.array([1.0, 0, 0]))

    def aim_foot(self, out: Rotations, side: str, toes_out: float, pitch: float = 0.0) -> None:
        """Set the sole level, or the heel up by `pitch` radians, with the toes outwards by `toes_out` radians."""
        sign = 1.0 if side == "L" else -1.0
        world = rotation((0, 0, sign * toes_out)) @ rotation((pitch, 0, 0))
        out[f"foot.{side}"] = self.turn(out, f"lowerleg02.{side}").T @ world

    def aim_hand(self, out: Rotations, side: str, fingers: np.ndarray, palm: np.ndarray) -> None:
        """Set the direction of the fingers and of the palm's normal; the forearm takes part of the twist."""
        sign = 1.0 if side == "L" else -1.0
        wrist, index, little = (self.heads[f"{name}.{side}"] for name in ("wrist", "finger2-1", "finger5-1"))
        normal = np.cross(index - wrist, little - wrist)
        normal *= np.sign(normal @ np.array([-sign, 0, -1.0]))
        along = self.heads[f"finger3-1.{side}"] - wrist
        world = _frame(unit(fingers), np.asarray(palm, float)) @ _frame(along, normal).T
        local = self.turn(out, f"lowerarm01.{side}").T @ world
        axis = unit(wrist - self.heads[f"lowerarm02.{side}"])  # a rotation about it leaves the wrist in place
        # Swing-twist decomposition: the twist about the forearm follows from the rotation's skew part.
        skew = np.array([local[2, 1] - local[1, 2], local[0, 2] - local[2, 0], local[1, 0] - local[0, 1]])
        twist = 2 * np.arctan2(skew @ axis, 1 + np.trace(local))
        half = rotation(axis * float(np.clip(0.6 * twist, -1.3, 1.3)))
        out[f"lowerarm02.{side}"] = half
        out[f"wrist.{side}"] = half.T @ local
