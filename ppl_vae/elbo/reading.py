"""One pass over a pair: trace the guide, replay the model, and read the log density of each draw and datum."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn

__all__ = [
    "Draws",
    "Latent",
    "Program",
    "Reading",
    "is_weighted",
    "plate_scale",
    "read",
    "sort_traces",
    "traces",
]

Program = Callable[..., Any]
Site = Any
Plates = dict[str, CondIndepStackFrame]
ROUNDING = 1e-6  # of a weight, in single precision
PARTICLES = "num_particles_vectorized"  # Pyro's name: a plate inside then subsamples once for all draws


class Latent(NamedTuple):
    """A site that the guide draws.

    Attributes:
        name, z: Of the site, and its value.
        q, prior: Its laws q(z | x) and p(z), without what plates and masks put around them.
        weight, mask: What multiplies it beside the data plates, a KL weight; None for nothing.
        dims: Of plates that it has beside the data plates.
    """

    name: str
    z: Tensor
    q: Any
    prior: Any
    weight: Tensor | float | None
    mask: Any
    dims: list[int]

    def total(self, log_density: Tensor) -> Tensor:
        """What a log density [..., *plates] at this site adds to the bound: weighted, masked, own plates summed."""
        return _total(log_density, self.weight, self.mask, self.dims)


@dataclass(frozen=True)
class Draws:
    """Draws of z from the guide for each datum, and the natural logarithms of their densities.

    Attributes:
        z: The codes, [num_particles, *data, z_dim].
        likelihood: Log p(x | z), [num_particles, *data]: the observed sites, without the scale of the data plates.
        prior: Log p(z), [num_particles, *data], times the KL weight where a pair has one.
        guide: Log q(z | x), [num_particles, *data], with the same weight as the prior.
    """

    z: Tensor
    likelihood: Tensor
    prior: Tensor
    guide: Tensor

    @property
    def log_weight(self) -> Tensor:
        """Log p(x, z) - log q(z | x), [num_particles, *data]. Its mean over draws is the bound."""
        return self.likelihood + self.prior - self.guide

    def under(self, prior: nn.Module) -> "Draws":
        """The same draws under another p(z), an ex-post mixture for example. No network runs again."""
        with torch.no_grad():
            return dataclasses.replace(self, prior=prior().log_prob(self.z))

    @staticmethod
    def joined(parts: "Sequence[Draws]", dim: int) -> "Draws":
        """Several draws as one: along the axis 0 they are draws of the same data, along 1 they are of other data."""
        names = [field.name for field in dataclasses.fields(Draws)]
        return Draws(*(torch.cat([getattr(part, name) for part in parts], dim) for name in names))


@dataclass(frozen=True)
class Reading(Draws):
    """The draws of one pass, and what the sites of its traces say.

    Attributes:
        latents: The sites that the guide draws.
        weights: What multiplies a site beside the data plates, by the name of the site: a KL weight, or the scale of a
            subsampled plate of its own. Sites that nothing multiplies are left out.
        scale: The number of data in the whole set for each datum of the batch, N / B.
        penalty: What ``pyro.factor`` adds in the model, less what it adds in the guide, averaged over draws: [].
    """

    latents: list[Latent]
    weights: dict[str, Any]
    scale: float
    penalty: Tensor | float


def traces(model: Program, guide: Program, *args: Any, nesting: int = 1, **kwargs: Any) -> tuple[Any, Any]:
    """Trace the guide, replay the model at its draws, and compute the log density of every site.

    Args:
        model, guide: The pair.
        args, kwargs: The arguments of both: a batch in the model's units, and the size of the whole set.
        nesting: How many plates stand inside each other, Pyro's ``max_plate_nesting``.

    Returns:
        The traces of the guide and of the model. The sites that choose the rows of a plate are left out.
    """
    model_trace, guide_trace = get_importance_trace("flat", nesting, model, guide, args, kwargs)
    return guide_trace, model_trace


def read(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 1,
    nesting: int = 1,
    z: Tensor | None = None,
    **kwargs: Any,
) -> Reading:
    """Read ``num_particles`` draws per datum in one pass over a pair.

    Args:
        model, guide: The pair.
        args, kwargs: The arguments of both: a batch in the model's units, and the size of the whole set.
        num_particles: The number K of draws per datum. For K > 1 they stand in a plate of their own, and the networks
            see [K, batch, ...].
        nesting: How many plates stand inside each other without that of the draws, Pyro's ``max_plate_nesting``.
        z: Codes [K, batch, z_dim] to be scored; the guide draws them unless they are given.

    Raises:
        ValueError: If the sites of the two halves do not match, or share no plate of the data.
    """
    if z is not None:
        given = poutine.Trace()
        given.add_node("z", name="z", type="sample", value=z, is_observed=False, infer={})
        guide = poutine.replay(guide, trace=given)
    has_plate = num_particles > 1 or z is not None
    if has_plate:
        plate = pyro.plate(PARTICLES, num_particles, dim=-1 - nesting)
        model, guide = plate(model), plate(guide)
    guide_trace, model_trace = traces(model, guide, *args, nesting=nesting + has_plate, **kwargs)
    return sort_traces(model_trace, guide_trace, num_particles, nesting)


def sort_traces(model_trace: Any, guide_trace: Any, num_particles: int, nesting: int) -> Reading:
    """Sort what two traces say, log densities computed.

    Args:
        model_trace, guide_trace: Of one pass, the model replayed at the guide's draws.
        num_particles: Draws K a datum, in a plate of their own outside the others; no plate where K is 1.
        nesting: Plates inside each other, Pyro's ``max_plate_nesting``.

    Raises:
        ValueError: If the sites share no plate, have more plates than ``nesting``, or are not those of the other half.
    """
    scored, drawn = _sites(model_trace), _sites(guide_trace)
    latents = _names_of_latents(scored, drawn)
    observed = [site for site in scored.values() if site["is_observed"] and not _is_factor(site)]
    priors, posteriors = [scored[name] for name in latents], [drawn[name] for name in latents]
    every = [*observed, *posteriors, *priors]
    data = _data_plates(every, nesting)
    shape = [num_particles, *[1] * nesting]
    for frame in data.values():
        shape[frame.dim or 0] = frame.size
    weights = {site["name"]: _weight(site, data) for site in every}
    factors = [site["log_prob_sum"] for site in scored.values() if _is_factor(site)]
    factors += [-site["log_prob_sum"] for site in drawn.values() if _is_factor(site)]
    found = [_latent(site, scored[site["name"]], data) for site in posteriors]
    return Reading(
        _code(found, shape),
        _sum(observed, data, shape),
        _sum(priors, data, shape),
        _sum(posteriors, data, shape),
        found,
        {name: weight for name, weight in weights.items() if weight is not None},
        math.prod(plate_scale(frame) for frame in data.values()),
        sum(factors, 0.0) / num_particles,
    )


def _code(latents: list[Latent], shape: list[int]) -> Tensor:
    """The value of the site z, one for each draw and datum; the first latent where no site has that name."""
    latent = next((latent for latent in latents if latent.name == "z"), latents[0])
    if latent.dims:
        return latent.z
    return latent.z.expand(*shape, *latent.z.shape[latent.z.ndim - latent.q.event_dim :])


def is_weighted(weight: Tensor | float | None) -> bool:
    """Whether a weight is known not to be 1; a tensor is asked under validation alone, for that waits for a device."""
    if isinstance(weight, Tensor):
        return is_validation_enabled() and bool(((weight - 1).abs() > ROUNDING).any())
    return weight is not None and abs(weight - 1) > ROUNDING


def _sites(trace: Any) -> dict[str, Site]:
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {name: site for name, site in sites.items() if not site["infer"].get("_deterministic")}


def _names_of_latents(scored: dict[str, Site], drawn: dict[str, Site]) -> list[str]:
    latents = [name for name, site in drawn.items() if not site["is_observed"]]
    alone = {name for name, site in scored.items() if not site["is_observed"]}.symmetric_difference(latents)
    alone |= {name for name, site in drawn.items() if site["is_observed"] and not _is_factor(site)}
    if alone or not latents:
        raise ValueError(f"model and guide must draw the same sites, one at least, {sorted(alone)} are of one alone")
    for name in latents:
        for what in ("mask", "scale"):
            halves = scored[name][what], drawn[name][what]
            kinds = {isinstance(half, Tensor) for half in halves}
            if len(kinds) > 1 or (kinds == {False} and halves[0] != halves[1]):
                raise ValueError(
                    f"site {name!r} has another {what} in one half: have it in both, or it is another model"
                )
    return latents


def _law(site: Site) -> Any:
    """The distribution of a site, without what plates and masks put around it."""
    law = site["fn"]
    while isinstance(law, dist.torch_distribution.ExpandedDistribution | dist.torch_distribution.MaskedDistribution):
        law = law.base_dist
    return law


def _mask(site: Site) -> Any:
    """The mask of a site, or that of its distribution."""
    law, mask = site["fn"], site["mask"]
    while isinstance(law, dist.torch_distribution.ExpandedDistribution | dist.torch_distribution.MaskedDistribution):
        own = getattr(law, "_mask", None)
        mask = own if mask is None or own is None else mask & own
        law = law.base_dist
    return mask


def _latent(site: Site, prior: Site, data: Plates) -> Latent:
    law, dims = _law(site), _own_dims(site, data)
    return Latent(site["name"], site["value"], law, _law(prior), _weight(site, data), _mask(site), dims)


def _is_factor(site: Site) -> bool:
    return isinstance(_law(site), dist.Unit)


def plate_scale(frame: CondIndepStackFrame) -> float:
    """How often a datum of a plate counts: its size over that of its batch."""
    return (frame.full_size or frame.size) / frame.size


def _plates(site: Site) -> Plates:
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES}


def _own_dims(site: Site, data: Plates) -> list[int]:
    return [frame.dim or 0 for name, frame in _plates(site).items() if name not in data]


def _data_plates(sites: list[Site], nesting: int) -> Plates:
    """The plates that all sites share: inside them, data are independent."""
    deepest = max((-(frame.dim or 0) for site in sites for frame in _plates(site).values()), default=0)
    if deepest > nesting:
        raise ValueError(f"plates stand {deepest} deep, and max_plate_nesting is {nesting}: raise it to {deepest}")
    shared = _plates(sites[0])
    for site in sites:
        plates = _plates(site)
        shared = {name: frame for name, frame in shared.items() if name in plates}
        if not shared:
            raise ValueError(
                f"site {site['name']!r} stands outside the plate of the data, so there is no bound per datum: sample "
                "every site in pyro.plate('data', size, subsample=x), or train with Pyro's Trace_ELBO"
            )
    return shared


def _weight(site: Site, data: Plates) -> Tensor | float | None:
    """What multiplies a site beside the plates of the data; None for nothing."""
    plates = math.prod(plate_scale(frame) for frame in data.values())
    scale = site["scale"]
    return None if isinstance(scale, int | float) and math.isclose(scale, plates) else scale / plates


def _sum(sites: list[Site], data: Plates, shape: list[int]) -> Tensor:
    """Log densities of some sites, [num_particles, *data]: plates of their own are summed, masks hold."""
    total = torch.zeros(())
    for site in sites:
        weight, dims = _weight(site, data), _own_dims(site, data)
        total = total + _total(site["unscaled_log_prob"], weight, site["mask"], dims)
    return total.expand(torch.broadcast_shapes(total.shape, shape))


def _total(log_density: Tensor, weight: Tensor | float | None, mask: Any, dims: list[int]) -> Tensor:
    value = scale_and_mask(log_density, 1.0 if weight is None else weight, mask)
    return value.sum(dims, keepdim=True) if dims else value
