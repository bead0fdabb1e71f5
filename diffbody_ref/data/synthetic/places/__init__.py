"""Places to photograph people in: rooms, streets, nature, studios. Each module builds a `Place` for a camera."""

from __future__ import annotations

import numpy as np

from diffbody_ref.data.synthetic.places.indoor import random_room
from diffbody_ref.data.synthetic.places.nature import random_nature
from diffbody_ref.data.synthetic.places.street import random_street
from diffbody_ref.data.synthetic.places.studio import random_studio
from diffbody_ref.data.synthetic.scene import Camera, Place

KINDS = {"room": random_room, "street": random_street, "nature": random_nature, "studio": random_studio}


def random_place(rng: np.random.Generator, camera: Camera) -> tuple[Place, str]:
    """Draw a place that is seen by a camera, and its kind, a key of `KINDS`. It leaves 0.6 m around the person free."""
    kind = str(rng.choice(list(KINDS), p=[0.36, 0.3, 0.24, 0.1]))
    return KINDS[kind](rng, camera), kind
