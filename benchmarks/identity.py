"""What an identity distance (eq. 6) means for a model's part network: python -m benchmarks.identity PEOPLE

The distances of one person, whose picture is degraded twice and goes through the regression stage each time, beside
those of different people in the same way: by them `diffbody_ref.ops.identity.IDENTITY_THRESHOLD` is chosen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.timing import RESULTS
from diffbody.cli.console import progress_bar, user_errors
from diffbody_ref.loading import load_pipeline, model_folder
from diffbody_ref.ops.identity import IDENTITY_THRESHOLD, PersonIdentity, compare_people

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
REGRESSION: dict[str, Any] = {
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "body_guidance_scale": 0.0,
    "use_structure": False,
    "output_type": "np",
    "return_intermediates": True,
}


def main(
    data: Annotated[
        Path, typer.Argument(help="Folder that `diffbody synth` wrote, of people who were not trained on.")
    ],
    model: Annotated[str, typer.Option(help="Model: nano, or a folder with a model_index.json.")] = "nano",
    out: Annotated[Path, typer.Option(help="JSON file of the distances.")] = RESULTS / "identity-nano.json",
) -> None:
    """Measure identity distances of the same person and of different people."""
    from diffbody_ref.data.recipes import model_recipe
    from diffbody_ref.evaluation.run import degraded
    from diffbody_ref.evaluation.subjects import Subjects
    from diffbody_ref.ops.images import resize
    from diffbody_ref.structure import part_embedder

    folder, subjects = model_folder(model), Subjects([data])
    pipeline = load_pipeline(folder, "auto")
    settings = pipeline.settings
    degradation = model_recipe(folder, settings.base_height, settings.base_width).degradation
    embed = part_embedder(pipeline.parts, pipeline.device)
    names = tuple(pipeline.parts.part_names)
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"clean": [], "first": [], "second": []}
    identities = []
    with progress_bar("pictures") as show:
        for index in range(len(subjects)):
            show(index, len(subjects))
            subject = subjects[index]
            person, clean = subject.person, subject.pixels
            if person.box is None or person.identity is None:
                raise ValueError(f"{data}: the pictures need boxes and identities, as `diffbody synth` writes them")
            identities.append(person.identity)
            seen["clean"].append(embed(clean, person.box[None]))
            for seed, name in enumerate(("first", "second")):
                low = resize(degraded(clean, index, seed, degradation), clean.shape[0], clean.shape[1]).clip(0, 1)
                found = pipeline(low, **REGRESSION).intermediates[0].regression
                found = resize(found, clean.shape[0], clean.shape[1]) if found.shape != clean.shape else found
                seen[name].append(embed(found, person.box[None]))
    features = {name: [np.concatenate(column) for column in zip(*rows, strict=True)] for name, rows in seen.items()}
    people = np.array(identities)
    groups = {
        "same picture, degraded twice": _pairs(names, features, "first", "second", people, same=True),
        "same picture, clean and degraded": _pairs(names, features, "clean", "first", people, same=True),
        "same person, another picture": _pairs(names, features, "first", "second", people, same=True, views=True),
        "different people": _pairs(names, features, "first", "second", people, same=False),
    }
    table = {name: _summary(values) for name, values in groups.items()}
    print(f"| pairs | number | {' | '.join(f'{q:.0%}' for q in QUANTILES)} | above {IDENTITY_THRESHOLD:g} |")
    print("|---|---:|" + "---:|" * (len(QUANTILES) + 1))
    for name, row in table.items():
        numbers = " | ".join(f"{row['quantiles'][f'{q:g}']:.3f}" for q in QUANTILES)
        print(f"| {name} | {row['number']} | {numbers} | {row['above']:.1%} |")
    print(f"\n| pairs | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for name, row in table.items():
        cells = (f"{part['0.01']:.3f}, {part['0.5']:.3f}, {part['0.99']:.3f}" for part in row["parts"].values())
        print(f"| {name} | {' | '.join(cells)} |")
    out.write_text(json.dumps({"model": model, "threshold": IDENTITY_THRESHOLD, "pairs": table}, indent=1) + "\n")


def _pairs(
    names: tuple[str, ...],
    features: dict[str, list[np.ndarray]],
    before: str,
    after: str,
    people: np.ndarray,
    *,
    same: bool,
    views: bool = False,
) -> list[PersonIdentity]:
    """Distances of all pairs of pictures of the same person or of different people.

    Args:
        views: of the same person, another picture and not the same one.
    """
    (ours, visibility), (theirs, _) = features[before], features[after]
    alike = people[:, None] == people[None]
    one = np.eye(len(people), dtype=bool)
    wanted = (alike & ~one if views else one) if same else ~alike
    rows, columns = np.nonzero(wanted)
    return compare_people(names, ours[rows], visibility[rows], theirs[columns])


def _summary(people: list[PersonIdentity]) -> dict[str, Any]:
    known = [person for person in people if person.distance is not None]
    values = [person.distance for person in known if person.distance is not None]
    parts: dict[str, list[float]] = {}
    for person in known:
        for name, distance in person.parts.items():
            if distance is not None:
                parts.setdefault(name, []).append(distance)
    return {
        "number": len(values),
        "quantiles": _quantiles(values),
        "above": float(np.mean([person.differs for person in known])),
        "parts": {name: _quantiles(distances) for name, distances in parts.items()},
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    return {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES}


if __name__ == "__main__":
    with user_errors():
        typer.run(main)
