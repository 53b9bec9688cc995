"""Lower bounds of log p(x), one per datum, from the traces of a pair in eval mode."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.data_set import tensor_of
from ..elbo.reading import Draws
from ..streams import seeded, stream_seed
from ..variant import Variant, densities, evaluating, log_jacobian, needs_density
from .annealing import annealed
from .pareto import effective_sample_size, psis

__all__ = ["Bounds", "bounds", "bounds_of", "bounds_under", "draws", "held_out"]


BLOCK = 64  # data whose draws come from one random stream


class Bounds(NamedTuple):
    """Lower bounds of log p(x), nats per datum, in the data's units; every field is [rows].

    Attributes:
        elbo: Mean of the log weights (Kingma and Welling, 2014, eq. 2).
        elbo_error: Its Monte Carlo standard error.
        importance_weighted: Log of the mean weight (Burda et al., 2016, eq. 8), with as many draws.
        importance_weighted_error: Its Monte Carlo standard error, ``sqrt(1 / ess - 1 / K)`` by the delta method.
        ess: Effective number of the K draws, ``(sum w)**2 / sum w**2``.
        k_hat: Tail index of the weights: above min(1 - 1 / log10(K), .7) the weighted bound and its error are not to be
            trusted; -inf for equal weights, inf for too few draws (Vehtari et al., 2024).
        annealed: Log of the mean weight of annealed importance sampling, with chains of its own, fewer than K perhaps;
            None unless asked for.
        annealed_error: Its Monte Carlo standard error.
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
    """What draws [num_particles, rows] say of log p(x)."""
    log_weight, count = draws.log_weight.mT, len(draws.log_weight)
    ess = effective_sample_size(log_weight)
    unknown = math.nan if count == 1 else 0.0  # one draw tells no error
    error = log_weight.std(-1) if count > 1 else torch.full_like(ess, math.nan)
    return Bounds(
        log_weight.mean(-1),
        error / math.sqrt(count),
        log_weight.logsumexp(-1) - math.log(count),
        (1 / ess - 1 / count).clamp_min(0).sqrt() + unknown,
        ess,
        psis(log_weight)[1],
    )


def held_out(variant: Variant, y: Tensor, num_particles: int = 4) -> Tensor:
    """The unweighted objective, nats per datum, [rows], in the data's units, larger is better.

    The bound; for a point mass log p(x, z), or log p(x | z) where codes are not scored.
    """
    chunks, has_bound = [], variant.has_bound
    for rows in y.split(max(1, variant.at_once // num_particles)):
        part = densities(variant, rows, num_particles)
        score = part.log_weight if has_bound else part.likelihood
        if not has_bound and variant.codes_are_scored:
            score = score + part.prior
        chunks.append(score.mean(0))
    return torch.cat(chunks) + log_jacobian(variant)


def draws(variant: Variant, x: Any, num_particles: int = 100, *, seed: int = 0, at_once: int | None = None) -> Draws:
    """Draw ``num_particles`` codes from q(z | x) for each datum, and score them in the data's units.

    Arguments and errors are those of ``bounds``. The result holds ``num_particles * rows * (z_dim + 3)`` numbers.
    """
    parts = list(_blocks(variant, tensor_of(x), num_particles, seed, at_once))
    return Draws.joined(parts, 1)


def _blocks(variant: Variant, x: Tensor, num_particles: int, seed: int, at_once: int | None) -> Iterator[Draws]:
    """Draws for a block of rows at a time, each block from a random stream of its own, however it is then scored.

    A block is 64 rows, or as many as the encoder is given at once where a datum is large: it depends on x alone.
    """
    needs_density(variant)
    at_once = variant.at_once if at_once is None else at_once
    if num_particles < 1 or at_once < 1:
        raise ValueError(f"num_particles and at_once must be at least 1, got {num_particles!r} and {at_once!r}")
    with evaluating(variant), seeded(seed):
        shift = log_jacobian(variant)
        for block, y in enumerate(variant.in_model_units(x).split(min(BLOCK, variant.at_once))):
            torch.manual_seed(stream_seed(seed, block))
            z = variant.guide.posterior(y).sample((num_particles,))
            size = max(1, at_once // num_particles)
            parts = [_scored(variant, *some, at_once) for some in zip(y.split(size), z.split(size, dim=1), strict=True)]
            some = Draws.joined(parts, 1)
            yield replace(some, likelihood=some.likelihood + shift)


def _scored(variant: Variant, y: Tensor, z: Tensor, at_once: int) -> Draws:
    """Given draws z [num_particles, rows, z_dim], at most ``at_once`` a pass where there is one row."""
    return Draws.joined([densities(variant, y, len(some), some) for some in z.split(at_once)], 0)


def bounds(
    variant: Variant,
    x: Any,
    num_particles: int = 100,
    *,
    temperatures: int | None = None,
    seed: int = 0,
    at_once: int | None = None,
) -> Bounds:
    """Lower bounds of log p(x), of each datum.

    In expectation ``elbo <= importance_weighted <= log p(x)``, and ``annealed <= log p(x)``.

    ``annealed`` is the log of the mean weight of 16 chains. With one temperature it is the importance-weighted bound of
    16 draws, below that of K draws where K is above 16. It is above ``importance_weighted`` only where its temperatures
    are enough to make up for the fewer chains; neither order holds in general.

    Data are taken in blocks, so that memory does not grow with their number; the draws depend on ``seed`` and x alone,
    not on ``at_once``. Exactly ``num_particles`` draws are used for each datum.

    Args:
        variant: A pair whose guide has a density; with an ex-post mixture, ``with_prior(variant, mixture)``.
        x: [rows, *x_shape], in the data's units: an array, a tensor, a data frame, or ``Data`` for its test part.
        num_particles: Draws K a datum.
        temperatures: Steps of annealed importance sampling from the guide to the posterior; left out unless given.
            ``annealed`` takes the number of chains too.
        seed: Of the draws; the caller's random streams are left as they were.
        at_once: Codes that a network sees at once; 1000 unless given, or fewer where a datum is large. Larger
            temporaries fall out of the cache.

    Raises:
        ValueError: If the guide is a point mass, for which there is no bound, or x cannot be used.
    """
    x = tensor_of(x)
    (found,) = bounds_under(variant, [variant.model.prior], x, num_particles, seed=seed, at_once=at_once)
    if temperatures is None:
        return found
    chains = annealed(variant, x, temperatures=temperatures, seed=seed)
    return found._replace(annealed=chains.bound, annealed_error=chains.error)


def bounds_under(
    variant: Variant,
    priors: Sequence[nn.Module],
    x: Any,
    num_particles: int = 100,
    *,
    seed: int = 0,
    at_once: int | None = None,
) -> list[Bounds]:
    """``bounds`` of the same model under each of several p(z), from the same draws: networks run once for all."""
    blocks = _blocks(variant, tensor_of(x), num_particles, seed, at_once)
    parts = [[bounds_of(some.under(prior)) for prior in priors] for some in blocks]
    return [Bounds(*map(_joined, zip(*under_one, strict=True))) for under_one in zip(*parts, strict=True)]


def _joined(parts: tuple[Tensor | None, ...]) -> Any:
    """A field of the bounds of all blocks; None where it was not asked for."""
    return None if parts[0] is None else torch.cat(parts)  # type: ignore[arg-type]
