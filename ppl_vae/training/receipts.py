"""The receipt of a fit: the objective that was optimised, with its numbers, and whether it is a bound."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..elbo import PerDatumELBO, target_of
from ..elbo.reading import traces
from ..models.likelihoods import of_coordinate
from ..noise import at_floor
from ..snapshot import Snapshot
from ..streams import seeded
from ..variant import Variant, evaluating, frozen_parts, in_mode, log_jacobian

__all__ = ["receipt"]

Lines = list[tuple[str, str]]  # each of them a name and a text


def receipt(variant: Variant, y: Tensor, settings: dict[str, Any]) -> str:
    """The receipt of a fit, as text.

    Args:
        variant: The pair with the weights that were kept.
        y: Training data [rows, *x_shape] in the model's units, on which the objective is computed.
        settings: The numbers of the run, as in ``Fit.settings``.

    Returns:
        Lines of text.
    """
    lines = [
        *_run(variant, settings),
        *_loss(variant, y, int(settings["rows"])),
        *_parts(variant, y),
        *_cautions(variant, y),
    ]
    return "\n".join(f"{name:<22}{text}" for name, text in lines)


# What was optimised.


def _run(variant: Variant, settings: dict[str, Any]) -> Lines:
    """What was trained, for how long, and what its objective is."""
    steps = f"{settings['steps']} steps of {settings['batch_size']}"
    optimizer = settings.get("optimizer", "Adam")  # records without the entry are from before there was a choice
    return [
        ("variant", f"{variant.name}, {steps}, lr {settings['lr']:g}"),
        ("optimizer", optimizer),
        ("objective", nature(variant)),
        ("estimator", _estimator(variant)),
    ]


def nature(variant: Variant) -> str:
    """What the training objective is: a bound of log p(x), or why it is not one."""
    loss, name = variant.loss, type(variant.loss).__name__
    if not variant.has_bound:
        scored = "log p(x, z)" if variant.codes_are_scored else "log p(x | z) without p(z)"
        return f"a MAP objective, {scored} at a point mass: not a lower bound of log p(x)"
    if variant.kl_weight != 1.0:
        return f"not the bound: its KL is weighted by {variant.kl_weight:.4g}. The bound that is reported has weight 1"
    if target_of(loss) is None:
        return f"the objective of {name}, which ppl_vae.verify can test. The bound that is reported does not use it"
    if isinstance(loss, PerDatumELBO) and loss.caution:
        return f"not the bound: {loss.caution}. The bound that is reported leaves this out"
    stated = [str(getattr(penalty, "nature", "")) for penalty in variant.model.penalties]
    if any(stated):
        return "; ".join(filter(None, stated))
    if len(variant.model.penalties):
        return "the bound of log p(x) plus the log factors of the penalties: a MAP objective of the penalised values"
    return "a lower bound of log p(x)"


def _estimator(variant: Variant) -> str:
    """The estimator of the loss and its number of draws."""
    particles = variant.loss.num_particles
    name = repr(variant.loss) if isinstance(variant.loss, PerDatumELBO) else type(variant.loss).__name__
    draws = "1 draw" if particles == 1 else f"{particles} draws"
    return f"{name}, {draws} per datum and step"


# The terms of the objective.


def _loss(variant: Variant, y: Tensor, size: int) -> Lines:
    """The loss, and the terms whose sum it is."""
    terms = _terms(variant, y, size)
    shift = float(log_jacobian(variant))
    loss = -sum(terms.values()) - shift
    return [
        ("loss", f"{loss:.5g} nats per datum in the data's units, over {len(y)} data: minus the sum of these terms"),
        *((f"  {name}", f"{value:+.5g}") for name, value in terms.items()),
        ("  log Jacobian", f"{shift:+.5g}"),
    ]


def _terms(variant: Variant, y: Tensor, size: int) -> dict[str, float]:
    """The term of each site in training mode, in nats per datum, weighted as it was optimised."""
    with _as_trained(variant):
        guide, model = traces(variant.model, variant.guide, y, size)
    terms = {}
    for sign, density, trace in ((-1, "-log q", guide), (1, "log p", model)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            kind = "factor of" if name.startswith("penalty") else density
            terms[f"{kind} {name}"] = sign * float(site["log_prob_sum"]) / size + 0.0  # adding 0.0 turns -0.0 into 0.0
    if target_of(variant.loss) not in (None, "elbo"):
        with _as_trained(variant):
            loss = float(variant.loss(variant.model, variant.guide)(y, size)) / size
        terms["the estimator"] = -loss - sum(terms.values())  # its difference from the terms of a single draw
    return terms


@contextmanager
def _as_trained(variant: Variant) -> Iterator[None]:
    """Training mode, with the same draws each time. The statistics that move in this mode are put back afterwards."""
    before = Snapshot(variant)
    try:
        with in_mode(variant, training=True), pyro.validation_enabled(False), seeded(0):
            yield
    finally:
        before.restore(variant)


# The parts of the pair.


def _parts(variant: Variant, y: Tensor) -> Lines:
    """The parts, with their numbers."""
    model = variant.model
    penalties = [("penalty", _described(penalty)) for penalty in model.penalties]
    return [
        ("likelihood", _described(model.likelihood)),
        ("prior", _described(model.prior)),
        ("guide", type(variant.guide).__name__),
        *_kl_weight(variant, y),
        *(penalties or [("penalties", "none")]),
        ("data scale", repr(model.scale)),
    ]


def _described(part: nn.Module) -> str:
    """A part and its numbers on one line."""
    return f"{type(part).__name__}({part.extra_repr()})"


FACTORS = {  # by distribution: the name of its scale, and the power of the KL weight that multiplies it
    dist.Normal: ("sigma", 0.5),
    dist.Laplace: ("scale", 1.0),
}


def _kl_weight(variant: Variant, y: Tensor) -> Lines:
    """The weight of the KL, and the scale of p(x | z) that is equivalent to it, if there is one.

    An objective with weight w on the KL, divided by w, is an objective with weight 1 and another scale of p(x | z), up
    to a term that does not depend on the networks. If s is the scale, the new scale is ``sqrt(w) s`` for a normal
    distribution, whose log density has ``|x - loc|**2 / (2 s**2)``. It is ``w s`` for a Laplace distribution, whose log
    density has ``|x - loc| / s``. Other distributions have no equivalent scale. A scale that is trained has none
    either, because training moves it.
    """
    if not variant.codes_are_scored:
        return [("KL weight", "none: p(z) is not in the objective")]
    weight = variant.kl_weight
    line = ("KL weight", f"{weight:.4g}")
    law = _fixed_law(variant, y) if weight != 1.0 and variant.has_bound else None
    if law is None:
        return [line]
    name, power = FACTORS[type(law)]
    scale = float(law.scale.flatten()[0])
    equivalent = weight**power * scale
    return [line, ("", f"{name} {scale:.4g} with this weight is equivalent to {name} {equivalent:.4g} with weight 1")]


def _fixed_law(variant: Variant, y: Tensor) -> Any:
    """p(x | z), if it is a normal or a Laplace distribution with a single scale that nothing moves; None otherwise."""
    with evaluating(variant), torch.enable_grad(), pyro.validation_enabled(False), seeded(0):
        z = variant.guide.posterior(y[:2]).sample()
        law: Any = of_coordinate(variant.model.x_given_z(z))
    moves = hasattr(variant.model.likelihood, "observe")
    if type(law) not in FACTORS or moves or law.scale.requires_grad or law.scale.unique().numel() != 1:
        return None
    return law


# Cautions.


def _cautions(variant: Variant, y: Tensor) -> Lines:
    """The parts that are frozen, and what may be wrong with the objective or the fit."""
    lines = []
    frozen, floor = frozen_parts(variant), at_floor(variant, y)
    if frozen:
        lines.append(("frozen", f"{', '.join(frozen)}: in eval mode throughout, and not trained"))
    if floor is not None:
        lines.append(("caution", floor))
    if _lacks_minimiser(variant):
        remedy = "penalise the decoder too"
        reason = "because codes can shrink while weights grow"
        lines.append(("caution", f"the objective has no minimiser, {reason}: {remedy}"))
    return lines


def _lacks_minimiser(variant: Variant) -> bool:
    """Whether the codes are penalised and the decoder is not.

    Codes z / c with a decoder that multiplies them by c then give the same x, and their penalty falls as c grows.
    """
    is_held = len(variant.model.penalties) > 0 or any(map(is_parametrized, variant.model.decoder.modules()))
    return not variant.has_bound and variant.codes_are_scored and not is_held
