"""One pass over a pair: trace the guide, replay the model, and read the log density of each draw and datum."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
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
    "traces",
]

Program = Callable[..., Any]
Site = Any
Plates = dict[str, CondIndepStackFrame]
ROUNDING = 1e-6  # a weight this close to 1 counts as 1, in single precision
PARTICLES = "num_particles_vectorized"  # Pyro's name for the plate of draws: plates inside it subsample only once


class Latent(NamedTuple):
    """A site that the guide draws.

    Attributes:
        name: The name of the site.
        z: Its value.
        q: The distribution q(z | x), without the expansions and masks around it.
        prior: The distribution p(z), without the expansions and masks around it.
        weight: The factor on its log density, beside the scale of the data plates, for example a KL weight. None
            stands for 1.
        mask: The mask on its log density. None stands for no mask.
        dims: The dimensions of its plates that are not data plates.
    """

    name: str
    z: Tensor
    q: Any
    prior: Any
    weight: Tensor | float | None
    mask: Any
    dims: list[int]

    def total(self, log_density: Tensor) -> Tensor:
        """Weigh and mask a log density [..., *plates] of this site, and sum it over the plates of its own."""
        return _total(log_density, self.weight, self.mask, self.dims)


@dataclass(frozen=True)
class Draws:
    """Draws of z from the guide for each datum, and the natural logarithms of their densities.

    Attributes:
        z: The codes, [num_particles, *data, z_dim].
        likelihood: Log p(x | z) of the observed sites, [num_particles, *data], without the scale of the data plates.
        prior: Log p(z), [num_particles, *data], times the KL weight where a pair has one.
        guide: Log q(z | x), [num_particles, *data], with the same weight as the prior.
    """

    z: Tensor
    likelihood: Tensor
    prior: Tensor
    guide: Tensor

    @property
    def log_weight(self) -> Tensor:
        """The log weights log p(x, z) - log q(z | x), [num_particles, *data]. Their mean over draws is the bound."""
        return self.likelihood + self.prior - self.guide

    def under(self, prior: nn.Module) -> "Draws":
        """The same draws under another p(z), for example an ex-post mixture. No network runs again."""
        with torch.no_grad():
            return dataclasses.replace(self, prior=prior().log_prob(self.z))

    @staticmethod
    def joined(parts: "Sequence[Draws]", dim: int) -> "Draws":
        """Join several records into one: along axis 0 for more draws of the same data, along axis 1 for more data."""
        names = [field.name for field in dataclasses.fields(Draws)]
        return Draws(*(torch.cat([getattr(part, name) for part in parts], dim) for name in names))


@dataclass(frozen=True)
class Reading(Draws):
    """The draws of one pass over a pair, and further facts from its traces.

    Attributes:
        latents: The sites that the guide draws.
        weights: The factor on the log density of each site, beside the scale of the data plates, by the name of the
            site. It is a KL weight, or the scale of a subsampled plate of the site's own. Sites with the factor 1 are
            left out.
        scale: The number of data in the whole set for each datum of the batch, N / B.
        penalty: The sum of the factors (``pyro.factor``) in the model minus that in the guide, averaged over draws, [].
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
        nesting: The number of plates inside each other, Pyro's ``max_plate_nesting``.

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
        num_particles: The number K of draws per datum. For K > 1 the draws have their own plate, and the networks see
            [K, batch, ...].
        nesting: The number of plates inside each other, Pyro's ``max_plate_nesting``, without the plate of the draws.
        z: Codes [K, batch, z_dim] to be scored. By default the guide draws them.

    Raises:
        ValueError: If the sites of the model and of the guide do not match, or share no plate of the data.
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
    return _reading(model_trace, guide_trace, num_particles, nesting)


def _reading(model_trace: Any, guide_trace: Any, num_particles: int, nesting: int) -> Reading:
    """Read the draws of two traces with log densities, the model replayed at the draws of the guide.

    Raises:
        ValueError: If the sites of the two traces do not match, share no plate, or have more plates than ``nesting``.
    """
    scored, drawn = _sites(model_trace), _sites(guide_trace)
    names = _latent_names(scored, drawn)
    observed = [site for site in scored.values() if site["is_observed"] and not _is_factor(site)]
    priors = [scored[name] for name in names]
    posteriors = [drawn[name] for name in names]
    every = [*observed, *posteriors, *priors]

    data = _data_plates(every, nesting)
    shape = [num_particles, *[1] * nesting]
    for frame in data.values():
        shape[frame.dim or 0] = frame.size

    latents = [_latent(posterior, prior, data) for posterior, prior in zip(posteriors, priors, strict=True)]
    weights = {site["name"]: _weight(site, data) for site in every}
    factors = _factors(scored) + [-factor for factor in _factors(drawn)]
    return Reading(
        z=_code(latents, shape),
        likelihood=_sum(observed, data, shape),
        prior=_sum(priors, data, shape),
        guide=_sum(posteriors, data, shape),
        latents=latents,
        weights={name: weight for name, weight in weights.items() if weight is not None},
        scale=_scale_of_plates(data),
        penalty=sum(factors, 0.0) / num_particles,
    )


def _code(latents: list[Latent], shape: list[int]) -> Tensor:
    """The value of the site z for each draw and datum, or of the first latent if no site has the name z."""
    latent = next((latent for latent in latents if latent.name == "z"), latents[0])
    if latent.dims:
        return latent.z
    event_shape = latent.z.shape[latent.z.ndim - latent.q.event_dim :]
    return latent.z.expand(*shape, *event_shape)


def is_weighted(weight: Tensor | float | None) -> bool:
    """Whether a weight is not 1. A tensor is examined only under Pyro's validation, because that waits for a device."""
    if isinstance(weight, Tensor):
        return is_validation_enabled() and bool(((weight - 1).abs() > ROUNDING).any())
    return weight is not None and abs(weight - 1) > ROUNDING


def _sites(trace: Any) -> dict[str, Site]:
    """The sample sites of a trace by name, without ``pyro.deterministic``."""
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {name: site for name, site in sites.items() if not site["infer"].get("_deterministic")}


def _latent_names(scored: dict[str, Site], drawn: dict[str, Site]) -> list[str]:
    """The names of the sites that the guide draws.

    Raises:
        ValueError: If the model does not draw the same sites, with the same scales and masks.
    """
    names = [name for name, site in drawn.items() if not site["is_observed"]]
    in_model = {name for name, site in scored.items() if not site["is_observed"]}
    observed_by_guide = {name for name, site in drawn.items() if site["is_observed"] and not _is_factor(site)}
    unmatched = in_model.symmetric_difference(names) | observed_by_guide
    if unmatched:
        raise ValueError(f"model and guide must draw the same sites, but only one of them has {sorted(unmatched)}")
    if not names:
        raise ValueError("model and guide must draw at least one site, such as z, and they draw none")
    for name in names:
        for attribute in ("mask", "scale"):
            if not _agree(scored[name][attribute], drawn[name][attribute]):
                raise ValueError(f"site {name!r} has different {attribute}s in model and guide: set the same in both")
    return names


def _agree(one: Any, other: Any) -> bool:
    """Whether two masks or scales agree. Two tensors are not compared, because that would wait for a device."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor)
    return bool(one == other)


def _layers(site: Site) -> list[Any]:
    """The distribution of a site, and then each distribution inside its expansions and masks, down to the innermost."""
    layers = [site["fn"]]
    while isinstance(layers[-1], ExpandedDistribution | MaskedDistribution):
        layers.append(layers[-1].base_dist)
    return layers


def _law(site: Site) -> Any:
    """The distribution of a site without the expansions and masks around it."""
    return _layers(site)[-1]


def _mask(site: Site) -> Any:
    """The mask of a site and of its distribution, or None."""
    masks = [site["mask"], *(layer._mask for layer in _layers(site) if isinstance(layer, MaskedDistribution))]
    masks = [mask for mask in masks if mask is not None]
    return reduce(and_, masks) if masks else None


def _latent(posterior: Site, prior: Site, data: Plates) -> Latent:
    return Latent(
        name=posterior["name"],
        z=posterior["value"],
        q=_law(posterior),
        prior=_law(prior),
        weight=_weight(posterior, data),
        mask=_mask(posterior),
        dims=_own_dims(posterior, data),
    )


def _is_factor(site: Site) -> bool:
    """Whether a site is a ``pyro.factor``."""
    return isinstance(_law(site), dist.Unit)


def _factors(sites: dict[str, Site]) -> list[Tensor]:
    """The log densities of the factors among some sites, [] each."""
    return [site["log_prob_sum"] for site in sites.values() if _is_factor(site)]


def plate_scale(frame: CondIndepStackFrame) -> float:
    """The number of data in a plate for each datum of its batch."""
    return (frame.full_size or frame.size) / frame.size


def _scale_of_plates(data: Plates) -> float:
    """The number of data in the whole set for each datum of the batch, N / B, over all data plates."""
    return math.prod(plate_scale(frame) for frame in data.values())


def _plates(site: Site) -> Plates:
    """The plates around a site by name, without the plate of the draws."""
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES}


def _own_dims(site: Site, data: Plates) -> list[int]:
    """The dimensions of the plates around a site that are not data plates."""
    return [frame.dim or 0 for name, frame in _plates(site).items() if name not in data]


def _data_plates(sites: list[Site], nesting: int) -> Plates:
    """The plates that all sites share. Data are independent inside them."""
    deepest = max((-(frame.dim or 0) for site in sites for frame in _plates(site).values()), default=0)
    if deepest > nesting:
        raise ValueError(f"plates are nested {deepest} deep, but max_plate_nesting is {nesting}: set it to {deepest}")
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
    """The factor on the log density of a site, beside the scale of the data plates, or None for 1."""
    scale, of_plates = site["scale"], _scale_of_plates(data)
    if isinstance(scale, int | float) and math.isclose(scale, of_plates):
        return None
    return scale / of_plates


def _sum(sites: list[Site], data: Plates, shape: list[int]) -> Tensor:
    """The sum of the log densities of some sites, [num_particles, *data], each weighted, masked and summed."""
    total = torch.zeros(())
    for site in sites:
        weight, dims = _weight(site, data), _own_dims(site, data)
        total = total + _total(site["unscaled_log_prob"], weight, site["mask"], dims)
    return total.expand(torch.broadcast_shapes(total.shape, shape))


def _total(log_density: Tensor, weight: Tensor | float | None, mask: Any, dims: list[int]) -> Tensor:
    """Weigh and mask a log density, and sum it over some dimensions, which are kept with the size 1."""
    value = scale_and_mask(log_density, 1.0 if weight is None else weight, mask)
    return value.sum(dims, keepdim=True) if dims else value
