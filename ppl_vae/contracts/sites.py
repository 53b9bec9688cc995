"""Contracts on the sites of a training pass: their names, plates, weights, shapes, densities and supports."""

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import transform_to

from ..elbo.reading import plate_scale
from ..models.half import is_point_mass
from .registry import Contract, contract
from .training_pass import PLATE, RUNS, Pass

__all__ = ["SITES"]

SITES: list[Contract] = []
REQUIRED = (("guide", "z", "samples"), ("model", "z", "samples"), ("model", "x", "observes"))
BOTH = "give the model and the guide one kl_weight object, and sample z under self.weighted() in both"
NO_SCALE = "the one weight of a pair is kl_weight=KLWeight(...): use no poutine.scale and no poutine.mask"
AXES = {
    "x": "a likelihood and its log_prob have batch shape [..., *x_shape]; .to_event takes all of x_shape",
    "z": "a prior has batch shape [] and q(z | x) has [rows]; .to_event(1) makes their coordinates an event",
    "penalty": (
        "with per_datum, a penalty returns [rows] or one number; without it, one number: drop the axis, or call .sum()"
    ),
}


@contract(SITES, "sites", remedy=RUNS, gate=True)
def names(run: Pass) -> str | None:
    """The guide samples z, and the model samples z and observes x."""
    found = {(half, name): "observes" if site["is_observed"] else "samples" for half, name, site in run.sites()}
    for half, name, verb in REQUIRED:
        if found.get((half, name)) != verb:
            theirs = [other for of, other in found if of == half]
            return f"the {half} {verb} no site {name!r}; its sites are {theirs} (call the code 'z' and the datum 'x')"
    return None


@contract(SITES, "plate", remedy=PLATE)
def plate(run: Pass) -> str | None:
    """In the model and in the guide, z and x stand in the plate of the data, and the plate has the given size."""
    wanted = run.size // len(run.y)
    for half, name, site in run.sites():
        frame = next((frame for frame in site["cond_indep_stack"] if frame.name == "data"), None)
        if frame is None and name in ("z", "x"):
            return f"site {name!r} of the {half} stands outside the plate of the data (open it: {PLATE})"
        if frame is not None and plate_scale(frame) != wanted:
            return (
                f"in the {half}, a datum at site {name!r} counts {plate_scale(frame):g} times, wanted {wanted}, the "
                "number of data in the whole set per datum of the batch (give the plate the size that forward takes: "
                f"{PLATE})"
            )
    return None


class Effect(NamedTuple):
    """The factor on the log density of a site, without that of its plates, and whether the site is masked."""

    times: float
    masked: bool


NO_EFFECT = Effect(1.0, masked=False)


def _effect(site: Any) -> Effect:
    plates = math.prod(plate_scale(frame) for frame in site["cond_indep_stack"])
    return Effect(round(float(site["scale"]) / plates, 4), site["mask"] is not None)


@contract(SITES, "kl weight", remedy=BOTH)
def kl_weight(run: Pass) -> str | None:
    """The KL weight acts only on z, and is the same number in the model and in the guide."""
    for half, name, site in run.sites():
        effect = _effect(site)
        if name != "z" and effect != NO_EFFECT:
            return f"site {name!r} of the {half} is masked or counts {effect.times:.4g} times, wanted 1 ({NO_SCALE})"
    effects = {half: _effect(run.site(half, "z")) for half in ("model", "guide")}
    acting = [half for half, effect in effects.items() if effect != NO_EFFECT]
    weights = {"model": run.variant.model.kl_weight, "guide": getattr(run.variant.guide, "kl_weight", None)}
    holding = [half for half, weight in weights.items() if weight is not None]
    if weights["model"] is not weights["guide"]:
        return _one_sided(holding)
    if effects["model"] != effects["guide"]:
        return _one_sided(acting)
    if holding and not acting:
        return f"the KL weight acts on neither the model nor the guide ({BOTH})"
    if acting and not holding:
        return f"site 'z' is masked or counts {effects['model'].times:.4g} times, wanted 1 ({NO_SCALE})"
    return None


def _one_sided(halves: list[str]) -> str:
    where = f"on the {halves[0]} alone" if len(halves) == 1 else "on the model and on the guide separately"
    return f"the KL weight acts {where}, so training would fit another model ({BOTH})"


@contract(SITES, "axes", remedy=RUNS)
def axes(run: Pass) -> str | None:
    """A site in the plate has one log density per datum, and a factor outside it is one number."""
    for half, name, site in run.sites():
        wanted = _plate_shape(site)
        if not wanted and name in ("z", "x"):
            continue  # it stands outside the plate, which the contract "plate" reports
        got = list(site["unscaled_log_prob"].shape)
        if _stripped(got) == _stripped(wanted):
            continue
        times = math.prod(got) // math.prod(wanted)
        excess = f", so that each would count {times} times" if wanted and times > 1 else ""
        remedy = AXES["penalty"] if isinstance(site["fn"], dist.Unit) else AXES.get(name, AXES["z"])
        return f"site {name!r} of the {half} has log densities of shape {got}, wanted {wanted}{excess} ({remedy})"
    return None


def _plate_shape(site: Any) -> list[int]:
    """The batch shape that the plates around a site give it, or [] outside every plate."""
    sizes = {-frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.dim is not None}
    outermost = max(sizes, default=0)
    return [sizes.get(axis, 1) for axis in range(outermost, 0, -1)]


def _stripped(shape: list[int]) -> list[int]:
    """A shape without its leading axes of size 1, which change nothing."""
    first = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]


@contract(SITES, "density", remedy="guide.posterior returns a distribution")
def density(run: Pass) -> str | None:
    """The guide declares a density if, and only if, q(z | x) has one."""
    declared: bool | None = getattr(run.variant.guide, "has_density", None)
    q = run.site("guide", "z")["fn"]
    if declared is None or declared != is_point_mass(q):
        return None
    name = type(run.variant.guide).__name__
    found = "a point mass, which has no density" if declared else f"{type(q).__name__}, which has a density"
    return f"{name} declares has_density = {declared}, and q(z | x) is {found} (declare has_density = {not declared})"


@contract(SITES, "support", remedy="p(z) and q(z | x) have an attribute support")
def code_support(run: Pass) -> str | None:
    """Every code that q(z | x) can draw lies in the support of p(z)."""
    q, prior = run.site("guide", "z")["fn"], run.site("model", "z")["fn"]
    z = run.site("guide", "z")["value"].detach()
    try:
        support: Any = prior.support
        inside = bool(support.check(_possible_codes(q, z)).all())
    except (NotImplementedError, ValueError):  # a distribution that does not declare its support
        return None
    if inside:
        return None
    name = getattr(support, "base_constraint", support)
    remedy = "give the guide the prior's support, by a transform of its distribution, or choose another prior"
    return f"q(z | x) reaches beyond the support of p(z), {name} ({remedy})"


def _possible_codes(q: Any, z: Tensor) -> Tensor:
    """The draws z and points from the whole support of q, [count, rows, z_dim]. Draws alone may miss rare codes."""
    draws = z.unsqueeze(0)
    if is_point_mass(q):
        return draws  # its declared support is the reals, but a network may give only some of them
    try:
        points = transform_to(q.support)(3 * torch.randn(16, *z.shape).to(z))
    except NotImplementedError:  # torch knows no transform to this support
        return draws
    return torch.cat([draws, points.detach()])
