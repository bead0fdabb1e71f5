"""Batching in flight without a server: who joins, waits, finishes and fails; and simulated arrivals."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from diffbody_ref.ops.builtin import NANO_FOLDER
from diffbody_ref.ops.options import RestoreOptions
from diffbody_ref.ops.processing import Sizes
from diffbody_ref.ops.samplers import StepInfo, make_schedule
from runtime.bundle import Bundle
from runtime.restore import Restorer, load_tokenizer
from runtime.steps import Sampling
from runtime.triton.contract import (
    ATTENTION,
    BOXES,
    EMBEDDINGS,
    LATENTS,
    LOSS_CURVE,
    NOTICES,
    POSE,
    SAMPLED,
    STEPS_DONE,
    TEXT,
    VISIBILITY,
    WINDOWS,
)
from runtime.triton.errors import BusyError
from runtime.triton.flights import flight_of, outputs_of
from runtime.triton.in_flight import (
    Candidate,
    Failed,
    Finished,
    Flight,
    Going,
    InFlight,
    Policy,
    Result,
    Waiting,
    advance_all,
)
from runtime.triton.settings import Settings, Ticket


@dataclass
class Clock:
    """A clock that only moves when it is told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Toy:
    """Advances samplings without networks.

    Attributes:
        clock: moved on by each call.
        cost: seconds that a batch of this size takes.
        broken: samplings with which a batch fails.
        batches: the samplings of every call so far.
    """

    clock: Clock = field(default_factory=Clock)
    cost: Callable[[int], float] = lambda size: 1.0
    broken: list[Sampling] = field(default_factory=list)
    batches: list[list[Sampling]] = field(default_factory=list)

    def __call__(self, batch: Sequence[Sampling]) -> list[StepInfo]:
        self.batches.append(list(batch))
        self.clock.now += self.cost(len(batch))
        if any(each is broken for each in batch for broken in self.broken):
            raise MemoryError("too large")
        return [each.advance(each.latents + 1, None) for each in batch]


def flight(steps: int, toy: Toy, deadline: float = 0.0, size: int = 2, prompts: int = 1) -> Flight:
    """A flight of a picture whose latents are (4, size, size)."""
    latents = np.zeros((1, 4, size, size), np.float32)
    schedule = make_schedule("ddim", steps)
    options = RestoreOptions(num_inference_steps=steps)
    sampling = Sampling(
        schedule, latents, lambda draw: latents, latents, np.zeros((prompts, 3, 2), np.float32), options
    )
    return Flight(sampling, toy.clock(), deadline)


def start(steps: dict[str, int], policy: Policy = advance_all, capacity: int = 8) -> tuple[InFlight, Toy]:
    """Flights of these numbers of steps under way together."""
    toy = Toy()
    in_flight = InFlight(toy, capacity, policy, toy.clock)
    for key, count in steps.items():
        in_flight.join(key, flight(count, toy))
    return in_flight, toy


def kinds(results: dict[Hashable, Result]) -> dict[Hashable, str]:
    return {key: type(result).__name__ for key, result in results.items()}


def test_a_newcomer_joins_at_the_next_step() -> None:
    in_flight, toy = start({"a": 3})
    assert kinds(in_flight.step(["a"])) == {"a": "Going"}
    in_flight.join("b", flight(2, toy))
    assert kinds(in_flight.step(["a", "b"])) == {"a": "Going", "b": "Going"}
    assert kinds(in_flight.step(["a", "b"])) == {"a": "Finished", "b": "Finished"}
    assert [len(batch) for batch in toy.batches] == [1, 2, 2]
    assert len(in_flight) == 0


def test_results_tell_the_step_and_who_has_left() -> None:
    in_flight, _ = start({"long": 3, "short": 1})
    results = in_flight.step(["short", "long"])
    assert list(results) == ["short", "long"]  # in the order of who is present
    going, finished = results["long"], results["short"]
    assert isinstance(going, Going)
    assert isinstance(finished, Finished)
    assert (going.step.step, going.step.num_steps) == (0, 3)
    assert finished.flight.done
    assert "long" in in_flight
    assert "short" not in in_flight


def test_who_is_absent_stays_as_it_is() -> None:
    in_flight, toy = start({"a": 2, "b": 2})
    assert kinds(in_flight.step(["b"])) == {"b": "Going"}
    assert [len(batch) for batch in toy.batches] == [1]
    assert kinds(in_flight.step(["a", "b"])) == {"a": "Going", "b": "Finished"}


def test_nobody_present_is_no_batch() -> None:
    in_flight, toy = start({"a": 2})
    assert in_flight.step([]) == {}
    assert toy.batches == []


def test_beyond_the_capacity_the_answer_is_busy() -> None:
    in_flight, toy = start({"a": 1, "b": 2}, capacity=2)
    with pytest.raises(BusyError, match="2 requests are in flight, which is the most; retry later"):
        in_flight.join("c", flight(1, toy))
    with pytest.raises(BusyError):
        in_flight.check_capacity()
    in_flight.step(["a", "b"])  # a leaves
    in_flight.join("c", flight(1, toy))
    assert len(in_flight) == 2


def test_a_key_is_taken_once() -> None:
    in_flight, toy = start({"a": 2})
    with pytest.raises(ValueError, match="'a' is under way already"):
        in_flight.join("a", flight(1, toy))
    with pytest.raises(KeyError):
        in_flight.step(["never joined"])


def test_who_leaves_makes_room() -> None:
    in_flight, toy = start({"a": 2}, capacity=1)
    in_flight.leave("a")
    in_flight.leave("a")
    in_flight.join("b", flight(1, toy))
    assert "a" not in in_flight


def test_a_deadline_ends_a_flight_before_the_next_step() -> None:
    in_flight, toy = start({"a": 5})
    in_flight.join("b", flight(5, toy, deadline=toy.clock.now + 1.5))
    assert kinds(in_flight.step(["a", "b"])) == {"a": "Going", "b": "Going"}  # 1 s has passed
    assert kinds(in_flight.step(["a", "b"])) == {"a": "Going", "b": "Going"}  # 2 s
    results = in_flight.step(["a", "b"])
    assert kinds(results) == {"a": "Going", "b": "Failed"}
    failed = results["b"]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, TimeoutError)
    assert "time is over" in str(failed.error)
    assert "b" not in in_flight
    assert [len(batch) for batch in toy.batches] == [2, 2, 1]


def test_a_cancelled_flight_leaves() -> None:
    in_flight, toy = start({"a": 5, "b": 5})
    results = in_flight.step(["a", "b"], cancelled={"a", "unknown"})
    assert kinds(results) == {"a": "Failed", "b": "Going"}
    failed = results["a"]
    assert isinstance(failed, Failed)
    assert "was cancelled" in str(failed.error)
    assert "a" not in in_flight
    assert [len(batch) for batch in toy.batches] == [1]


def test_one_that_fails_takes_no_others_with_it() -> None:
    in_flight, toy = start({"a": 2, "b": 2, "c": 2})
    bad = flight(2, toy)
    toy.broken.append(bad.sampling)
    in_flight.join("bad", bad)
    results = in_flight.step(["a", "b", "bad", "c"])
    assert kinds(results) == {"a": "Going", "b": "Going", "bad": "Failed", "c": "Going"}
    failed = results["bad"]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, MemoryError)
    assert [len(batch) for batch in toy.batches] == [4, 1, 1, 1, 1]
    assert kinds(in_flight.step(["a", "b", "c"])) == dict.fromkeys("abc", "Finished")
    assert [len(batch) for batch in toy.batches][5:] == [3]


def oldest(count: int) -> Policy:
    """At most so many advance: those that have waited for longest, and of equals those that joined first."""

    def choose(candidates: Sequence[Candidate]) -> Collection[Hashable]:
        return [each.key for each in sorted(candidates, key=lambda each: -each.rounds_waited)[:count]]

    return choose


def test_the_policy_decides_who_waits() -> None:
    in_flight, toy = start({"a": 2, "b": 2, "c": 1}, oldest(2))
    assert kinds(in_flight.step(["c", "b", "a"])) == {"a": "Going", "b": "Going", "c": "Waiting"}
    results = in_flight.step(["a", "b", "c"])
    assert kinds(results) == {"a": "Finished", "b": "Waiting", "c": "Finished"}
    waiting = results["b"]
    assert isinstance(waiting, Waiting)
    assert waiting.flight.rounds_waited == 1
    assert kinds(in_flight.step(["b"])) == {"b": "Finished"}
    assert [len(batch) for batch in toy.batches] == [2, 2, 1]


def test_a_policy_sees_what_it_may_need() -> None:
    """In the order in which they joined, with what is left to do, its size, guidance, age and deadline."""
    seen: list[list[Candidate]] = []

    def watch(candidates: Sequence[Candidate]) -> Collection[Hashable]:
        seen.append(list(candidates))
        return [candidates[-1].key]

    in_flight, toy = start({"a": 3}, watch)
    toy.clock.now += 10
    in_flight.join("b", flight(4, toy, deadline=toy.clock.now + 60, size=6, prompts=2))
    in_flight.step(["b", "a"])
    in_flight.step(["b", "a"])
    a, b = seen[-1]
    assert (a.key, a.steps_done, a.steps_left, a.latents_shape, a.denoiser_rows) == ("a", 0, 3, (4, 2, 2), 1)
    assert (b.key, b.steps_done, b.steps_left, b.latents_shape, b.denoiser_rows) == ("b", 1, 3, (4, 6, 6), 2)
    assert (a.seconds_in_flight, b.seconds_in_flight) == (11.0, 1.0)
    assert (a.seconds_left, b.seconds_left) == (float("inf"), 59.0)
    assert (a.rounds_waited, b.rounds_waited) == (1, 0)
    assert not a.guided


def test_a_policy_must_choose_somebody() -> None:
    in_flight, _ = start({"a": 2}, lambda candidates: ["unknown"])
    with pytest.raises(RuntimeError, match="chose none of the 1 requests"):
        in_flight.step(["a"])


def test_by_request_all_that_are_present_run_to_their_end() -> None:
    in_flight, toy = start({"a": 4, "b": 1, "c": 2})
    bad = flight(3, toy)
    toy.broken.append(bad.sampling)
    in_flight.join("bad", bad)
    results = in_flight.run_to_end(["a", "b", "c", "bad"])
    assert kinds(results) == {"a": "Finished", "b": "Finished", "c": "Finished", "bad": "Failed"}
    assert [len(batch) for batch in toy.batches] == [4, 1, 1, 1, 1, 2, 1, 1]
    assert len(in_flight) == 0


def test_by_request_what_waits_gets_its_turn() -> None:
    in_flight, _ = start({"a": 3, "b": 2, "c": 4}, oldest(1))
    assert set(kinds(in_flight.run_to_end(["a", "b", "c"])).values()) == {"Finished"}


def test_both_ways_give_the_same_latents() -> None:
    found = []
    for way in ("step", "run_to_end"):
        in_flight, toy = start({})
        flights = {key: flight(key, toy) for key in (2, 5, 3)}
        for key, each in flights.items():
            in_flight.join(key, each)
        while len(in_flight):
            getattr(in_flight, way)([key for key in flights if key in in_flight])
        found.append([each.sampling.latents for each in flights.values()])
    np.testing.assert_array_equal(found[0], found[1])


def test_a_requests_tensors_become_a_flight_and_its_end_becomes_tensors() -> None:
    def infer(stage: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise AssertionError(f"{stage} ran")

    bundle = Bundle.open(NANO_FOLDER)
    restorer = Restorer(bundle.manifest, infer, load_tokenizer(bundle))
    geometry, rng = restorer.geometry, np.random.default_rng(0)
    parts, side = len(geometry.part_names), 64
    shapes = {
        LATENTS: (geometry.latent_channels, side // geometry.factor, side // geometry.factor),
        POSE: (3, side, side),
        ATTENTION: (parts + 1, side, side),
        EMBEDDINGS: (1, parts, 16),
        VISIBILITY: (1, parts),
        WINDOWS: (1, 4),
        TEXT: (1, 77, 8),
        BOXES: (1, 5),
    }
    tensors = {tensor.name: rng.random((1, *shape), np.float32) for tensor, shape in shapes.items()}
    options = restorer.settings.options(num_inference_steps=1, body_guidance_scale=0.0)
    settings = Settings(
        options, Sizes(side, side, side, side, side, side), "", "", 5, "png", False, Ticket("", 7, 123.0)
    )
    made = flight_of(restorer, tensors, settings)
    for array in tensors.values():
        array.fill(0)  # Triton takes its memory back
    assert (made.size, made.deadline, made.notices, made.done) == ((side, side), 123.0, [], False)
    assert made.sampling.condition.any()
    toy = Toy()
    in_flight = InFlight(toy, 1, clock=toy.clock)
    made.deadline = 0.0
    in_flight.join("a", made)
    in_flight.step(["a"])
    outputs = outputs_of(made)
    assert set(outputs) == {SAMPLED.name, LOSS_CURVE.name, NOTICES.name, STEPS_DONE.name}
    assert outputs[SAMPLED.name].shape == (1, *shapes[LATENTS])
    assert outputs[STEPS_DONE.name].tolist() == [[1]]
    assert outputs[NOTICES.name].tolist() == outputs[LOSS_CURVE.name].tolist() == [[b"[]"]]


@dataclass
class Arrival:
    """A simulated request: when it comes, its steps; when it joined and was answered, and its rounds in between."""

    time: float
    steps: int
    joined: float = 0.0
    answered: float = 0.0
    rounds: int = 0
    longest_wait: int = 0


def draw_arrivals(seed: int, count: int = 60, mean_gap: float = 8.0) -> list[Arrival]:
    """Requests of 5, 10 or 20 steps that come at random, about as many as `simulate` can do."""
    rng = random.Random(seed)
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + rng.expovariate(1 / mean_gap))
    return [Arrival(time, rng.choice((5, 10, 20))) for time in times]


def simulate(arrivals: list[Arrival], in_flight: bool, policy: Policy = advance_all, capacity: int = 8) -> None:
    """Serve the arrivals, in flight or by request. A step of a batch of B takes 0.6 + 0.2·B s."""
    toy = Toy(Clock(0.0), cost=lambda size: 0.6 + 0.2 * size)
    server = InFlight(toy, capacity, policy, toy.clock)
    outside = list(enumerate(arrivals))
    while outside or len(server):
        if not len(server):
            toy.clock.now = max(toy.clock.now, outside[0][1].time)
        while outside and outside[0][1].time <= toy.clock.now and len(server) < capacity:
            key, arrival = outside.pop(0)
            arrival.joined = toy.clock.now
            server.join(key, flight(arrival.steps, toy))
        present = [key for key in range(len(arrivals)) if key in server]
        results = (server.step if in_flight else server.run_to_end)(present)
        for key in present:
            arrival, result = arrivals[key], results[key]
            arrival.rounds += 1
            arrival.longest_wait = max(arrival.longest_wait, result.flight.rounds_waited)
            if isinstance(result, Finished):
                arrival.answered = toy.clock.now


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_simulated_newcomers_are_answered_sooner_in_flight_than_by_request(seed: int) -> None:
    ways = {way: draw_arrivals(seed) for way in (True, False)}
    for way, arrivals in ways.items():
        simulate(arrivals, in_flight=way)
    seconds = {way: [each.answered - each.time for each in arrivals] for way, arrivals in ways.items()}
    assert statistics.median(seconds[True]) < 0.75 * statistics.median(seconds[False])
    # Until the first step, a newcomer waits for the step that is under way, and not for a whole batch.
    waits = {way: max(each.joined - each.time for each in arrivals) for way, arrivals in ways.items()}
    assert waits[True] < 0.5 * waits[False]


@pytest.mark.parametrize("seed", SEEDS)
def test_simulated_requests_never_wait_once_they_joined(seed: int) -> None:
    arrivals = draw_arrivals(seed, mean_gap=3.0)  # more than can be done at once: the capacity is reached
    simulate(arrivals, in_flight=True)
    assert all(each.rounds == each.steps for each in arrivals)
    assert all(each.longest_wait == 0 for each in arrivals)


@pytest.mark.parametrize("seed", SEEDS)
def test_simulated_requests_do_not_starve_where_few_advance_at_a_time(seed: int) -> None:
    """Two of eight advance in a round, those that waited longest: each gets its turn within four rounds."""
    arrivals = draw_arrivals(seed, mean_gap=3.0)
    simulate(arrivals, in_flight=True, policy=oldest(2), capacity=8)
    assert all(each.answered > 0 for each in arrivals)
    assert max(each.longest_wait for each in arrivals) == 3
