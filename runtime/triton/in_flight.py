"""Batching in flight: requests at different steps advance together, and a newcomer joins at the next step.

`InFlight` keeps the requests that are being sampled and advances them. It knows nothing of Triton. A replaceable
`Policy` decides in each round who advances and who waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field

from diffbody_ref.ops.samplers import StepInfo
from runtime.steps import Sampling
from runtime.triton.contract import TIME_IS_OVER, TOO_MANY_IN_FLIGHT, WAS_CANCELLED
from runtime.triton.errors import BusyError

Advance = Callable[[Sequence[Sampling]], list[StepInfo]]
"""Does one denoising step of each; fails for all of them or for none, as `runtime.steps.advance`."""


@dataclass
class Flight:
    """A request between its first and its last step.

    Attributes:
        sampling: what is advanced.
        began: when the work on it began, on the clock of `InFlight`.
        deadline: on the same clock; 0 is none.
        size: (height, width) of the picture at work, without its padding.
        notices: sentences for whoever sent the request, kept for the answer.
        rounds_waited: rounds in a row in which it was present and did not advance.
    """

    sampling: Sampling
    began: float
    deadline: float = 0.0
    size: tuple[int, int] = (0, 0)
    notices: list[str] = field(default_factory=list)
    rounds_waited: int = 0

    @property
    def done(self) -> bool:
        """All steps are done."""
        return self.sampling.done


@dataclass(frozen=True)
class Candidate:
    """A flight that may advance in this round, as a policy sees it.

    Attributes:
        key: under which the flight joined.
        steps_done: number of denoising steps done.
        steps_left: number of denoising steps that are left, at least 1.
        latents_shape: (C, h, w) of its latents; those of one shape go through the networks together.
        denoiser_rows: 2 with classifier-free guidance, else 1.
        guided: body guidance is active at the coming step.
        seconds_in_flight: since the work on it began.
        seconds_left: until its deadline; infinite where it has none.
        rounds_waited: rounds in a row in which it was present and did not advance.
    """

    key: Hashable
    steps_done: int
    steps_left: int
    latents_shape: tuple[int, ...]
    denoiser_rows: int
    guided: bool
    seconds_in_flight: float
    seconds_left: float
    rounds_waited: int


Policy = Callable[[Sequence[Candidate]], Collection[Hashable]]
"""The candidates of a round, in the order in which they joined → the keys of those that advance, at least one."""


def advance_all(candidates: Sequence[Candidate]) -> Collection[Hashable]:
    """Everyone who is present advances."""
    return [candidate.key for candidate in candidates]


@dataclass(frozen=True)
class Going:
    """The flight made a step, and more are to come."""

    flight: Flight
    step: StepInfo


@dataclass(frozen=True)
class Waiting:
    """The flight did not advance in this round."""

    flight: Flight


@dataclass(frozen=True)
class Finished:
    """The flight made its last step and has left."""

    flight: Flight
    step: StepInfo


@dataclass(frozen=True)
class Failed:
    """The flight has left because of an error: its own, its deadline, or that it was cancelled."""

    flight: Flight
    error: Exception


Result = Going | Waiting | Finished | Failed


class InFlight:
    """The requests that are being sampled.

    Args:
        advance: does one step of each flight in a batch.
        capacity: number of flights at a time.
        policy: decides who advances in a round.
        clock: seconds, on which deadlines are given.
    """

    def __init__(
        self,
        advance: Advance,
        capacity: int,
        policy: Policy = advance_all,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._advance, self._policy, self._clock = advance, policy, clock
        self.capacity = capacity
        self._flights: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    def check_capacity(self) -> None:
        """
        Raises:
            BusyError: as many flights as there may be are under way.
        """
        if len(self) >= self.capacity:
            raise BusyError(f"{self.capacity} {TOO_MANY_IN_FLIGHT}")

    def join(self, key: Hashable, flight: Flight) -> None:
        """Add a flight, which may advance in the next round.

        Raises:
            BusyError: as many flights as there may be are under way.
            ValueError: the key is taken.
        """
        if key in self:
            raise ValueError(f"a flight with the key {key!r} is under way already")
        self.check_capacity()
        self._flights[key] = flight

    def leave(self, key: Hashable) -> None:
        """Remove a flight that is not to go on; one that is unknown, or has left already, is fine."""
        self._flights.pop(key, None)

    def step(self, present: Collection[Hashable], cancelled: Collection[Hashable] = ()) -> dict[Hashable, Result]:
        """One round: a step of each flight that the policy chooses.

        Flights that are cancelled or past their deadline leave first. Flights that finish or fail leave as well.

        Args:
            present: keys of the flights that can advance now; all others stay as they are.
            cancelled: keys of the flights that nobody waits for.

        Returns:
            The result of each flight that is present.

        Raises:
            KeyError: a flight that is present never joined.
            RuntimeError: the policy chose nobody.
        """
        results: dict[Hashable, Result] = {key: self._check(key, cancelled) for key in present}
        ready = [key for key in self._flights if isinstance(results.get(key), Waiting)]
        chosen = self._choose(ready)
        for key in ready:
            self._flights[key].rounds_waited += 1
        results |= self._advance_batch(chosen)
        for key, result in results.items():
            if isinstance(result, Finished | Failed):
                self.leave(key)
        return results

    def run_to_end(self, present: Collection[Hashable], cancelled: Collection[Hashable] = ()) -> dict[Hashable, Result]:
        """Rounds until all flights that are present have finished or failed; arguments as those of `step`.

        Newcomers wait outside meanwhile: this is batching by request, to which batching in flight is compared.
        """
        results = self.step(present, cancelled)
        while left := [key for key, result in results.items() if isinstance(result, Going | Waiting)]:
            results |= self.step(left)
        return results

    def _check(self, key: Hashable, cancelled: Collection[Hashable]) -> Waiting | Failed:
        flight = self._flights[key]
        if key in cancelled:
            return Failed(flight, TimeoutError(WAS_CANCELLED))
        if flight.deadline and self._clock() > flight.deadline:
            return Failed(flight, TimeoutError(TIME_IS_OVER))
        return Waiting(flight)

    def _choose(self, ready: Sequence[Hashable]) -> list[Hashable]:
        """Those of the flights that the policy lets advance."""
        wanted = set(self._policy([self._candidate(key) for key in ready])) if ready else set()
        chosen = [key for key in ready if key in wanted]
        if ready and not chosen:
            raise RuntimeError(f"the policy chose none of the {len(ready)} requests that can advance")
        return chosen

    def _candidate(self, key: Hashable) -> Candidate:
        flight, now = self._flights[key], self._clock()
        sampling = flight.sampling
        return Candidate(
            key=key,
            steps_done=sampling.step,
            steps_left=len(sampling.schedule) - sampling.step,
            latents_shape=sampling.latents.shape[1:],
            denoiser_rows=len(sampling.text),
            guided=sampling.guided,
            seconds_in_flight=now - flight.began,
            seconds_left=flight.deadline - now if flight.deadline else math.inf,
            rounds_waited=flight.rounds_waited,
        )

    def _advance_batch(self, keys: Sequence[Hashable]) -> dict[Hashable, Result]:
        """A step of each flight; if they fail together, of each by itself, so that one does not take others with it."""
        flights = [self._flights[key] for key in keys]
        if not flights:
            return {}
        try:
            steps = self._advance([flight.sampling for flight in flights])
        except Exception as error:
            if len(keys) == 1:
                return {keys[0]: Failed(flights[0], error)}
            return {key: result for each in keys for key, result in self._advance_batch([each]).items()}
        results: dict[Hashable, Result] = {}
        for key, flight, step in zip(keys, flights, steps, strict=True):
            flight.rounds_waited = 0
            results[key] = Finished(flight, step) if flight.done else Going(flight, step)
        return results
