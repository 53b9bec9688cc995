"""What one pass of a pair says: log densities for each draw and datum, apart from plate scales and penalties."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

__all__ = ["Latent", "Program", "Reading", "sort_traces"]

Program = Callable[..., Any]
Site = Any
Plates = dict[str, CondIndepStackFrame]
PARTICLES = "num_particles_vectorized"  # Pyro's name: a plate inside then subsamples once for all draws


class Latent(NamedTuple):
    """A site that the guide draws: its value, its laws q(z | x) and p(z), and its mask (None for none)."""

    name: str
    z: Tensor
    q: Any
    prior: Any
    mask: Any


class Reading(NamedTuple):
    """Natural logarithms, [num_particles, *data], of what stands in the data plate.

    Attributes:
        likelihood: Log p(x | z): observed sites, without plate scale.
        prior: Log p(z), times the KL weight where a pair has one.
        guide: Log q(z | x), as the prior.
        latents: The sites that the guide draws.
        weights: What multiplies a site beside its plates, by its name: a KL weight. Sites that nothing multiplies are
            left out.
        scale: Data of the whole set for each datum of the batch, N / B.
        penalty: What ``pyro.factor`` adds, at its own scale, averaged over draws: [].
    """

    likelihood: Tensor
    prior: Tensor
    guide: Tensor
    latents: list[Latent]
    weights: dict[str, Any]
    scale: float
    penalty: Tensor | float

    @property
    def log_weight(self) -> Tensor:
        """Log p(x, z) - log q(z | x): [num_particles, *data]."""
        return self.likelihood + self.prior - self.guide


def sort_traces(model_trace: Any, guide_trace: Any, num_particles: int, nesting: int) -> Reading:
    """Sort what two traces say, log densities computed.

    Args:
        model_trace, guide_trace: Of one pass, the model replayed at the guide's draws.
        num_particles: Draws K a datum, in a plate of their own outside the others; no plate where K is 1.
        nesting: Plates inside each other, Pyro's ``max_plate_nesting``.

    Raises:
        ValueError: If the sites share no plate, or the two draw different sites.
    """
    scored, drawn = _sites(model_trace), _sites(guide_trace)
    latents = [name for name, site in drawn.items() if not site["is_observed"]]
    alone = {name for name, site in scored.items() if not site["is_observed"]}.symmetric_difference(latents)
    if alone:
        raise ValueError(f"model and guide draw different sites, {min(alone)!r} is drawn by one of them alone")
    observed = [site for site in scored.values() if site["is_observed"] and not _is_factor(site)]
    priors, posteriors = [scored[name] for name in latents], [drawn[name] for name in latents]
    data = _data_plates([*posteriors, *priors, *observed])
    shape = (num_particles, *[1] * nesting)
    weights = {site["name"]: _weight(site) for site in (*observed, *posteriors, *priors)}
    penalties = [site["log_prob_sum"] for site in scored.values() if _is_factor(site)]
    return Reading(
        _sum(observed, data, shape),
        _sum(priors, data, shape),
        _sum(posteriors, data, shape),
        [_latent(site, scored[site["name"]]) for site in posteriors],
        {name: weight for name, weight in weights.items() if weight is not None},
        math.prod(_ratio(frame) for frame in data.values()),
        sum(penalties, 0.0) / num_particles,
    )


def _sites(trace: Any) -> dict[str, Site]:
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def _law(site: Site) -> Any:
    """The distribution of a site, without what plates and masks put around it."""
    law = site["fn"]
    while isinstance(law, dist.torch_distribution.ExpandedDistribution | dist.torch_distribution.MaskedDistribution):
        law = law.base_dist
    return law


def _latent(site: Site, prior: Site) -> Latent:
    return Latent(site["name"], site["value"], _law(site), _law(prior), site["mask"])


def _is_factor(site: Site) -> bool:
    return isinstance(_law(site), dist.Unit)


def _ratio(frame: CondIndepStackFrame) -> float:
    return (frame.full_size or frame.size) / frame.size


def _plates(site: Site) -> Plates:
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES}


def _data_plates(sites: list[Site]) -> Plates:
    """The plates that all sites share: inside them, data are independent."""
    shared = _plates(sites[0])
    for site in sites:
        plates = _plates(site)
        shared = {name: frame for name, frame in shared.items() if name in plates}
        if not shared:
            raise ValueError(
                f"site {site['name']!r} stands outside the plate of the data, so there is no bound a datum: sample "
                "every site in pyro.plate('data', size, subsample=x), or train with Pyro's Trace_ELBO"
            )
    return shared


def _weight(site: Site) -> Tensor | float | None:
    """What multiplies a site beside its plates; None for nothing."""
    plates = math.prod(_ratio(frame) for frame in _plates(site).values())
    scale = site["scale"]
    return None if isinstance(scale, int | float) and math.isclose(scale, plates) else scale / plates


def _sum(sites: list[Site], data: Plates, shape: tuple[int, ...]) -> Tensor:
    """Log densities of some sites, [num_particles, *data]: plates of their own are summed, masks hold."""
    total: Any = 0.0
    for site in sites:
        weight = _weight(site)
        value = scale_and_mask(site["unscaled_log_prob"], 1.0 if weight is None else weight, site["mask"])
        for name, frame in _plates(site).items():
            if name not in data and value.dim() >= -(frame.dim or 0):
                value = value.sum(frame.dim, keepdim=True)
        total = total + value
    return total.expand(torch.broadcast_shapes(total.shape, shape))
