"""``ppl-vae evaluate``: the numbers of a checkpoint on held-out data."""

import json

import typer

from ..evaluation import ex_post
from ..evaluation.evaluation import evaluate as evaluation_of
from ..evaluation.features import features_for
from .options import (
    COMPONENTS,
    NUM_PARTICLES,
    AsJson,
    Components,
    FeatureSpace,
    NumParticles,
    Run,
    RunData,
    Seed,
    components_of,
)
from .records import expanded

__all__ = ["evaluate"]


@expanded
def evaluate(
    run: Run,
    *,
    run_data: RunData,
    seed: Seed = 0,
    num_particles: NumParticles = NUM_PARTICLES,
    components: Components = COMPONENTS,
    features: FeatureSpace = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint on held-out data.

    It prints bounds, reconstruction errors, measures of collapse and Frechet distances, with standard errors.
    """
    variant, data = run_data.opened(run)
    space = features_for(variant.in_model_units(data.resident), data.labels, features, seed)
    evaluation = evaluation_of(
        variant,
        data.test,
        num_particles,
        train=data.resident,
        ex_post=ex_post.fit(variant, data, components_of(components), seed),
        features=space,
        pictures=data.pictures,
        seed=seed,
    )
    if as_json:
        row = {"run": str(run), "features": space.name, "K": num_particles}
        row |= {**evaluation.as_row(), "notes": evaluation.notes}
        typer.echo(json.dumps(row, indent=2))
    else:
        typer.echo(str(evaluation))
