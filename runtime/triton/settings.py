"""What goes with a request from model to model, beside its tensors."""

from __future__ import annotations

import dataclasses
import hmac
import json
import time
from dataclasses import dataclass

import numpy as np

from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.processing import Sizes
from runtime.triton.contract import TIME_IS_OVER

# What reading JSON that somebody else wrote may raise.
BROKEN = (TypeError, ValueError, KeyError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True)
class Ticket:
    """What the models in front of the pipeline give to each request that they let in.

    Attributes:
        secret: the server's own, by which the pipeline's models know that a request came through the front.
        key: names the request within the server. It is random: no client can choose or guess another one's.
        deadline: seconds of the Unix clock.
    """

    secret: str
    key: int
    deadline: float

    def __post_init__(self) -> None:
        kinds = {"secret": str, "key": int, "deadline": int | float}
        if not all(isinstance(getattr(self, name), kind) for name, kind in kinds.items()):
            raise TypeError("not a ticket")

    def to_tensor(self) -> np.ndarray:
        """The ticket as JSON, object array (1,)."""
        return np.array([json.dumps(dataclasses.asdict(self)).encode()], np.object_)

    @classmethod
    def from_tensor(cls, tensor: np.ndarray) -> Ticket:
        """The ticket that `to_tensor` wrote.

        Raises:
            ValueError: somebody else wrote it.
        """
        try:
            return cls(**json.loads(tensor.reshape(-1)[0]))
        except BROKEN:
            raise ValueError("not a ticket of this server") from None

    def is_signed(self, secret: str) -> bool:
        """Whether its secret is the server's."""
        return hmac.compare_digest(self.secret.encode(errors="replace"), secret.encode())

    def check_deadline(self) -> None:
        """
        Raises:
            TimeoutError: nobody waits for the request any more.
        """
        if time.time() > self.deadline:
            raise TimeoutError(TIME_IS_OVER)


@dataclass(frozen=True)
class Settings:
    """The settings of one request.

    Attributes:
        options: checked, and complete with the bundle's defaults.
        sizes: of the picture, at work and of the output.
        prompt: what the picture shows.
        negative_prompt: what it should not show.
        seed: of the noise.
        output_format: "png", "jpg" or "webp".
        as_text: whether the answer's picture is base64.
        ticket: of the request.
    """

    options: RestoreOptions
    sizes: Sizes
    prompt: str
    negative_prompt: str
    seed: int
    output_format: str
    as_text: bool
    ticket: Ticket

    def to_tensor(self) -> np.ndarray:
        """The settings as JSON, object array (1, 1)."""
        return np.array([[json.dumps(dataclasses.asdict(self)).encode()]], np.object_)

    @classmethod
    def from_tensor(cls, tensor: np.ndarray) -> Settings:
        """The settings that `to_tensor` wrote.

        Raises:
            ValueError: somebody else wrote them.
        """
        try:
            values = json.loads(tensor.reshape(-1)[0])
            options, sizes = RestoreOptions(**values.pop("options")), Sizes(**values.pop("sizes"))
            return cls(options=options, sizes=sizes, ticket=Ticket(**values.pop("ticket")), **values)
        except BROKEN:
            raise ValueError("not settings that this server made") from None
