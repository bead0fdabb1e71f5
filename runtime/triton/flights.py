"""The sampler's tensors: a request's as a flight, and those of a finished flight."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import numpy as np

from runtime.restore import Parts, Restorer
from runtime.steps import Target
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
from runtime.triton.in_flight import Flight
from runtime.triton.settings import Settings


def flight_of(restorer: Restorer, tensors: Mapping[str, np.ndarray], settings: Settings) -> Flight:
    """A flight that has all its steps before it. The tensors are copied: Triton's memory is only lent.

    Args:
        restorer: of the bundle.
        tensors: the sampler's inputs by name, each with a batch of 1.
        settings: of the request.
    """
    began = time.time()
    latents, pose, attention = (np.array(tensors[each.name]) for each in (LATENTS, POSE, ATTENTION))
    target = Target(*(np.array(tensors[each.name][0]) for each in (EMBEDDINGS, VISIBILITY, WINDOWS)))
    text, boxes = (np.array(tensors[each.name][0]) for each in (TEXT, BOXES))
    parts = Parts(attention, target)
    sampling = restorer.begin(latents, pose, parts, text, settings.options, settings.seed)
    told = restorer.notices(len(boxes), sampling, settings.prompt, settings.negative_prompt)
    return Flight(sampling, began, settings.ticket.deadline, (settings.sizes.height, settings.sizes.width), told)


def outputs_of(flight: Flight) -> dict[str, np.ndarray]:
    """The sampler's outputs by name, without the span, each with a batch of 1."""
    sampling = flight.sampling
    curve, notes = (json.dumps(each).encode() for each in (sampling.loss_curve, flight.notices))
    return {
        SAMPLED.name: sampling.latents,
        LOSS_CURVE.name: np.array([[curve]], np.object_),
        NOTICES.name: np.array([[notes]], np.object_),
        STEPS_DONE.name: np.array([[sampling.step]], np.int64),
    }
