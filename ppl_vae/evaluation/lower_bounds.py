"""Lower bounds of log p(x), one per datum, from the traces of a pair in eval mode."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..elbo.importance import log_mean
from ..elbo.reading import Draws
from ..estimate import standard_error
from ..streams import seeded, stream_seed
from ..variant import (
    Variant,
    densities,
    evaluating,
    has_prior_density,
    log_jacobian,
    needs_density,
    needs_prior_density,
)
from .annealing import annealed_weights
from .pareto import effective_sample_size, log_mean_error, psis

__all__ = ["Bounds", "all_bounds", "bounds", "bounds_of", "bounds_under", "draws", "held_out"]


BLOCK = 64  # the draws of this many data come from one random stream
PRIOR_STREAM = 500_000  # the streams of a prior that estimates its density, far from those of the codes


class Bounds(NamedTuple):
    """Lower bounds of log p(x), nats per datum, in the data's units. Every field is [rows].

    Attributes:
        elbo: The mean of the K log weights (Kingma and Welling, 2014, eq. 2).
        elbo_error: The Monte Carlo standard error of ``elbo``.
        importance_weighted: The log of the mean of the K weights (Burda et al., 2016, eq. 8).
        importance_weighted_error: The Monte Carlo standard error of ``importance_weighted``, which is
            ``sqrt(1 / ess - 1 / K)`` by the delta method.
        ess: The effective number of the K draws, ``(sum w)**2 / sum w**2``.
        k_hat: The tail index of the weights. Above min(1 - 1 / log10(K), .7) neither the weighted bound nor its error
            can be trusted. It is -inf for equal weights, and inf for too few draws (Vehtari et al., 2024).
        annealed: The log of the mean weight of annealed importance sampling. Its chains are drawn separately, and there
            may be fewer than K. It is None unless ``bounds`` was called with ``temperatures``.
        annealed_error: The Monte Carlo standard error of ``annealed``, or None as ``annealed``.
    """

    elbo: Tensor
    elbo_error: Tensor
    importance_weighted: Tensor
    importance_weighted_error: Tensor
    ess: Tensor
    k_hat: Tensor
    annealed: Tensor | None = None
    annealed_error: Tensor | None = None


def bounds_of(draws: Draws) -> Bounds:
    """The bounds of log p(x), without ``annealed``, from draws [num_particles, rows]."""
    log_weight, count = draws.log_weight.mT, len(draws.log_weight)
    ess = effective_sample_size(log_weight)
    unknown = math.nan if count == 1 else 0.0  # one draw gives no error
    error = standard_error(log_weight, -1) if count > 1 else torch.full_like(ess, math.nan)
    return Bounds(
        log_weight.mean(-1),
        error,
        log_mean(log_weight, -1),
        log_mean_error(log_weight) + unknown,
        ess,
        psis(log_weight)[1],
    )


def held_out(variant: Variant, y: Tensor, num_particles: int = 4) -> Tensor:
    """The objective of held-out data without weights and penalties, [rows], nats per datum.

    Larger is better. For a guide with a density it is the bound. For a point mass it is log p(x, z), or log p(x | z)
    where p(z) is not in the objective.

    Args:
        variant: The pair, under ``evaluating``.
        y: Data [rows, *x_shape], in the model's units. The result is in the data's units.
        num_particles: The number of draws per datum.
    """
    has_bound = variant.has_bound
    chunks = []
    for rows in y.split(max(1, variant.at_once // num_particles)):
        found = densities(variant, rows, num_particles)
        if has_bound:
            score = found.log_weight
        elif variant.codes_are_scored:
            score = found.likelihood + found.prior
        else:
            score = found.likelihood
        chunks.append(score.mean(0))
    return torch.cat(chunks) + log_jacobian(variant)


def draws(variant: Variant, y: Tensor, num_particles: int = 100, *, seed: int = 0, at_once: int | None = None) -> Draws:
    """Draw ``num_particles`` codes from q(z | x) for each datum, and score them in the data's units.

    Args:
        variant: A pair whose guide has a density.
        y: Data [rows, *x_shape], in the model's units.
        num_particles, seed, at_once: As in ``bounds``.

    Returns:
        The codes and their log densities, ``num_particles * rows * (z_dim + 3)`` numbers.

    Raises:
        ValueError: If the guide is a point mass, or a number is below 1.
    """
    return Draws.joined(list(_blocks(variant, y, num_particles, seed, at_once)), 1)


def _blocks(variant: Variant, y: Tensor, num_particles: int, seed: int, at_once: int | None) -> Iterator[Draws]:
    """Yield the draws of a block of rows at a time.

    Each block has a random stream of its own, so that the draws do not depend on ``at_once``. A block has 64 rows, or
    fewer where a datum is large. Its size depends on the shape of x alone.
    """
    needs_density(variant)
    at_once = variant.at_once if at_once is None else at_once
    if num_particles < 1 or at_once < 1:
        raise ValueError(f"num_particles and at_once must be at least 1, got {num_particles!r} and {at_once!r}")
    with evaluating(variant), seeded(seed):
        shift = log_jacobian(variant)
        for index, block in enumerate(y.split(min(BLOCK, variant.at_once))):
            torch.manual_seed(stream_seed(seed, index))
            z = variant.guide.posterior(block).sample((num_particles,))
            scored = _scored(variant, block, z, at_once)
            torch.manual_seed(stream_seed(seed, PRIOR_STREAM + index))  # now no draw depends on ``at_once``
            if not has_prior_density(variant.model.prior):
                scored = scored.under(variant.model.prior)
            yield replace(scored, likelihood=scored.likelihood + shift)


def _scored(variant: Variant, y: Tensor, z: Tensor, at_once: int) -> Draws:
    """Score given codes z [num_particles, rows, z_dim] of y [rows, *x_shape], at most ``at_once`` codes per pass."""
    rows_per_pass = max(1, at_once // len(z))
    parts = []
    for rows, codes in zip(y.split(rows_per_pass), z.split(rows_per_pass, dim=1), strict=True):
        passes = [densities(variant, rows, len(some), some) for some in codes.split(at_once)]
        parts.append(Draws.joined(passes, 0))
    return Draws.joined(parts, 1)


def bounds(
    variant: Variant,
    x: Any,
    num_particles: int = 100,
    *,
    temperatures: int | None = None,
    seed: int = 0,
    at_once: int | None = None,
) -> Bounds:
    """Compute lower bounds of log p(x) for each datum.

    In expectation ``elbo <= importance_weighted <= log p(x)``, and ``annealed <= log p(x)``.

    ``annealed`` is the log of the mean weight of 16 chains. With one temperature it is the importance-weighted bound of
    16 draws, which in expectation is below that of K draws if K is above 16. With more temperatures ``annealed`` can be
    above ``importance_weighted`` although it has fewer chains. Neither bound is the larger one in general.

    Data are taken in blocks, so that memory does not grow with their number. The draws depend on ``seed`` and x alone,
    not on ``at_once``. Exactly ``num_particles`` draws are used for each datum.

    Args:
        variant: A pair whose guide has a density. For a bound under an ex-post mixture it is
            ``with_prior(variant, mixture)``.
        x: Data [rows, *x_shape] in their own units: an array, a tensor or a data frame. ``Data`` stands for its test
            part.
        num_particles: The number K of draws per datum.
        temperatures: The number of steps of annealed importance sampling from the guide to the posterior. By default no
            annealed bound is computed. The function ``annealed`` takes the number of chains too.
        seed: Seed of the draws. The caller's random streams are left as they were.
        at_once: The number of codes that a network gets at once. By default it is 1000, or less where a datum is large.

    Raises:
        ValueError: If the guide is a point mass, for which there is no bound, or x cannot be used.
    """
    y = variant.admit(x)
    return all_bounds(variant, y, num_particles, temperatures=temperatures, seed=seed, at_once=at_once)


def all_bounds(
    variant: Variant,
    y: Tensor,
    num_particles: int = 100,
    *,
    temperatures: int | None = None,
    seed: int = 0,
    at_once: int | None = None,
) -> Bounds:
    """Compute ``bounds`` for data y [rows, *x_shape] in the model's units. The bounds are in the data's units."""
    if temperatures is not None:
        needs_prior_density(variant, "annealed importance sampling")
    (found,) = bounds_under(variant, [variant.model.prior], y, num_particles, seed=seed, at_once=at_once)
    if temperatures is None:
        return found
    chains = annealed_weights(variant, y, temperatures=temperatures, seed=seed)
    return found._replace(annealed=chains.bound, annealed_error=chains.error)


def bounds_under(
    variant: Variant,
    priors: Sequence[nn.Module],
    y: Tensor,
    num_particles: int = 100,
    *,
    seed: int = 0,
    at_once: int | None = None,
) -> list[Bounds]:
    """Compute the bounds of one model under each of several priors, from the same draws. The networks run only once.

    Args:
        variant: A pair whose guide has a density.
        priors: Modules that return p(z).
        y: Data [rows, *x_shape], in the model's units.
        num_particles, seed, at_once: As in ``bounds``.
    """
    blocks = _blocks(variant, y, num_particles, seed, at_once)
    parts = [[bounds_of(block.under(prior)) for prior in priors] for block in blocks]
    return [Bounds(*map(_joined, zip(*under_one, strict=True))) for under_one in zip(*parts, strict=True)]


def _joined(parts: tuple[Tensor | None, ...]) -> Any:
    """One field of the bounds of all blocks, or None where it was not computed."""
    return None if parts[0] is None else torch.cat(parts)  # type: ignore[arg-type]
