"""Log densities a datum, from the traces of a pair in eval mode: what every reported bound is made of."""

import math
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .variant import ROWS, Variant, evaluating

__all__ = ["Bounds", "Terms", "bounds", "held_out", "log_jacobian", "terms"]


class Terms(NamedTuple):
    """Natural logarithms, [num_particles, rows], in the model's units: at each draw of z from the guide."""

    likelihood: Tensor
    prior: Tensor
    guide: Tensor

    @property
    def log_weight(self) -> Tensor:
        """Log p(x, z) - log q(z | x): its mean over draws is the bound."""
        return self.likelihood + self.prior - self.guide


class Bounds(NamedTuple):
    """Lower bounds of log p(x), nats a datum, [rows], in the data's units.

    Attributes:
        elbo: Mean of the log weights (Kingma and Welling, 2014, eq. 2).
        importance_weighted: Log of the mean weight (Burda et al., 2016, eq. 8), with as many draws.
    """

    elbo: Tensor
    importance_weighted: Tensor


def log_jacobian(variant: Variant) -> Tensor:
    """What turns a log density in the model's units into one in the data's, nats a datum; 0 for a mass."""
    scale = variant.model.scale.log_jacobian()
    return torch.zeros_like(scale) if variant.support.is_discrete else scale


def _site(trace: Any, name: str) -> Tensor:
    """The log density of a site of the plate, without plate scale or KL weight: [num_particles, rows]."""
    site = trace.nodes[name]
    value: Tensor = site["unscaled_log_prob"]
    return value


def terms(variant: Variant, y: Tensor, num_particles: int) -> Terms:
    """Trace the guide, replay the model: y [rows, *x_shape] in the model's units. Call it under ``evaluating``.

    Draws are independent for each datum; every site must stand in the plate ``data``.
    """

    def particles(half: Any) -> Any:
        return pyro.plate("particles", num_particles, dim=-2)(half)

    with pyro.validation_enabled(False):
        guide = poutine.trace(particles(variant.guide)).get_trace(y)
        model = poutine.trace(poutine.replay(particles(variant.model), trace=guide)).get_trace(y)
        guide.compute_log_prob()
        model.compute_log_prob()
    shape = (num_particles, len(y))
    latent = [name for name, site in guide.nodes.items() if _is_latent(site)]
    log_prior = sum((_site(model, name).expand(shape) for name in latent), torch.zeros(shape).to(y))
    log_guide = sum((_site(guide, name).expand(shape) for name in latent), torch.zeros(shape).to(y))
    return Terms(_site(model, "x").expand(shape), log_prior, log_guide)


def _is_latent(site: Any) -> bool:
    if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
        return False
    if not any(frame.name == "data" for frame in site["cond_indep_stack"]):
        raise ValueError(f"the latent {site['name']!r} stands outside the plate 'data': it has no bound a datum")
    return True


def held_out(variant: Variant, y: Tensor, num_particles: int = 4) -> Tensor:
    """The unweighted objective, nats a datum, [rows], in the data's units, larger is better.

    The bound; for a point mass log p(x, z), or log p(x | z) where codes are not scored.
    """
    chunks = []
    for rows in y.split(max(1, ROWS // num_particles)):
        part = terms(variant, rows, num_particles)
        score = part.log_weight if variant.has_bound else part.likelihood
        if not variant.has_bound and variant.codes_are_scored:
            score = score + part.prior
        chunks.append(score.mean(0))
    return torch.cat(chunks) + log_jacobian(variant)


def bounds(variant: Variant, x: Tensor, num_particles: int = 100) -> Bounds:
    """Bounds of log p(x) for x [rows, *x_shape] in the data's units.

    Data are taken in chunks of about 1000 decoder rows, and draws are summed in log space, so that memory does not
    grow with ``num_particles`` and exactly so many draws are used.

    Raises:
        ValueError: If the guide is a point mass: there is no bound.
    """
    if not variant.has_bound:
        raise ValueError(
            "a point-mass guide has no density, so there is no bound: log p(x, z) is a MAP objective. "
            "For a bound of its model give it a proposal, variant._replace(guide=Laplace(variant.guide, variant.model))"
        )
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles!r}")
    elbo, weighted = [], []
    draws = [ROWS] * (num_particles // ROWS) + [num_particles % ROWS] * bool(num_particles % ROWS)
    with evaluating(variant):
        for rows in variant.in_model_units(x).split(max(1, ROWS // num_particles)):
            total, log_total = torch.zeros(len(rows)).to(rows), torch.full((len(rows),), -math.inf).to(rows)
            for count in draws:
                log_weight = terms(variant, rows, count).log_weight
                total += log_weight.sum(0)
                log_total = torch.logaddexp(log_total, log_weight.logsumexp(0))
            elbo.append(total / num_particles)
            weighted.append(log_total - math.log(num_particles))
        shift = log_jacobian(variant)
    return Bounds(torch.cat(elbo) + shift, torch.cat(weighted) + shift)
