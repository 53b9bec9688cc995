"""Further numbers of a result, for the experiments: a second feature space, other densities of the codes, sigma(z)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from scipy.stats import rankdata  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor, nn

from ..coding import mean_data
from ..estimate import Number, mean_over_data
from ..evaluation import ex_post
from ..evaluation.features import Features, principal_components
from ..evaluation.metrics import (
    Subject,
    frechet_ex_post,
    frechet_floor,
    frechet_interpolations,
    frechet_prior,
    frechet_reconstructions,
)
from ..models.likelihoods import of_coordinate, scale_of_law
from ..streams import seeded
from ..variant import evaluating
from .results import Result

__all__ = ["of_codes", "of_history", "of_noise", "of_samples", "rank_correlation"]

DISTANCES = (frechet_floor, frechet_reconstructions, frechet_prior, frechet_ex_post, frechet_interpolations)


def of_samples(result: Result, features: Features) -> Mapping[str, Number]:
    """Distances of samples beyond those of ``evaluate``.

    * ``frechet_one`` is for codes from one Gaussian with a full covariance, fitted to draws of the guide.
    * ``nearest_prior`` is the distance of samples from the prior to the nearest training datum.
    * Names that begin with ``pca_`` are Frechet distances in the first 50 principal components of the training data.
      They are left out where the features of the evaluation are the same.
    """
    own = _subject(result, features)
    one = ex_post.fit(result.variant, result.data, 1, own.seed)
    found: dict[str, Callable[[], Number]] = {
        "nearest_prior": lambda: own.to_nearest_training_datum(own.samples(None)),
        "frechet_one": partial(frechet_ex_post, replace(own, mixture=one)),
    }
    if "principal components" not in features.name:
        other = _subject(result, principal_components(result.variant.in_model_units(result.data.resident)))
        found |= {f"pca_{distance.__name__}": partial(distance, other) for distance in DISTANCES}
        found["pca_frechet_one"] = partial(frechet_ex_post, replace(other, mixture=one))
    numbers = {}
    for name, number in found.items():
        with evaluating(result.variant), seeded(own.seed):  # as ``evaluate`` does for each of its own numbers
            numbers[name] = number()
    return numbers


def _subject(result: Result, features: Features) -> Subject:
    """The held-out data of a result, judged in a feature space."""
    variant, data = result.variant, result.data
    y = variant.in_model_units(data.test)
    real = y if data.pictures is None else data.pictures.to(y)
    train = variant.in_model_units(data.resident)
    return Subject(variant, y, real, train, result.mixture, features, result.evaluation.num_particles, 0)


def of_codes(result: Result, features: Features) -> Mapping[str, Number]:
    """``aggregate_kl`` estimates KL(q(z) || p(z)), nats, of the aggregate of the codes of held-out data.

    It is the mean of log m(z) - log p(z) over a draw from the guide for each datum, where m is the ex-post mixture. The
    mean log density of m is below that of q(z), so that the estimate is too small rather than too large.
    """
    variant = result.variant
    y = variant.in_model_units(result.data.test)
    with evaluating(variant), seeded(0):
        z = torch.cat([variant.guide.posterior(rows).sample() for rows in y.split(variant.at_once)])
        return {"aggregate_kl": mean_over_data(result.mixture().log_prob(z) - variant.model.prior().log_prob(z))}


def of_noise(result: Result, features: Features) -> Mapping[str, Number]:
    """``sigma_rank_correlation`` is Spearman's rank correlation of the scale of p(x | z) with the squared error.

    The error is that of the reconstruction at the mean code. The correlation is taken over the coordinates of a datum,
    and averaged over held-out data. It is empty where the scale is the same everywhere.
    """
    return {"sigma_rank_correlation": _correlation(result)}


def of_history(result: Result, features: Features) -> Mapping[str, Number]:
    """``sigma_first`` and ``sigma_last``, the scale of p(x | z) after the first and the last epoch, in model units.

    The other columns of the history are in the record of the cell.
    """
    rows = result.fit.rows
    found = {"sigma_first": rows[0]["sigma"], "sigma_last": rows[-1]["sigma"]}
    return {name: Number(value, reason="" if value is not None else "none") for name, value in found.items()}


def _correlation(result: Result) -> Number:
    variant = result.variant
    if not variant.has_bound:
        return Number(None, reason="MAP")
    y, per_datum = variant.in_model_units(result.data.test), []
    with evaluating(variant):
        for rows in y.split(variant.at_once):
            z = variant.guide.posterior(rows).mean
            scale = scale_of_law(of_coordinate(variant.model.x_given_z(z)))
            if scale is None or bool((scale == scale.flatten()[0]).all()):
                return Number(None, reason="one sigma")
            square = (mean_data(variant, z) - rows).square()
            per_datum.append(rank_correlation(scale.expand_as(square).flatten(1), square.flatten(1)))
    return mean_over_data(torch.cat(per_datum))


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of the rows of a and b, [rows, count] each. Equal numbers share their mean rank."""
    ranks = [torch.as_tensor(rankdata(side.cpu().numpy(), axis=1)) for side in (a, b)]
    here, there = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    return nn.functional.cosine_similarity(here, there, dim=1)
