"""The receipt of a fit: what was optimised, with its numbers in it, and whether it is a bound."""

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
from ..variant import Variant, frozen_parts, in_mode, log_jacobian

__all__ = ["receipt"]

FACTORS = {dist.Normal: ("sigma", 0.5), dist.Laplace: ("scale", 1.0)}  # law: name of its scale, power of the KL weight


def describe(part: nn.Module) -> str:
    """A part and its numbers on one line."""
    return f"{type(part).__name__}({part.extra_repr()})"


def nature(variant: Variant) -> str:
    """What the training objective is: a bound of log p(x), or why it is not."""
    if not variant.has_bound:
        scored = "log p(x, z)" if variant.codes_are_scored else "log p(x | z), with p(z) not in the objective,"
        return f"a MAP objective, {scored} at a point mass: not a lower bound of log p(x)"
    if variant.kl_weight != 1.0:
        return f"not the bound: its KL is weighted by {variant.kl_weight:.4g}; the bound is reported without"
    if target_of(variant.loss) is None:
        return f"what {type(variant.loss).__name__} says it is, held by ppl_vae.verify; the bound is reported apart"
    if isinstance(variant.loss, PerDatumELBO) and variant.loss.caution:
        return f"not the bound: {variant.loss.caution}; the bound is reported without"
    if len(variant.model.penalties):
        return "the bound of log p(x) plus the log factors below: MAP in what they penalise"
    return "a lower bound of log p(x)"


def shrinks(variant: Variant) -> bool:
    """Whether a code penalty stands alone: z / c and a decoder of c z pay ever less of it, at the same output."""
    held = len(variant.model.penalties) > 0 or any(map(is_parametrized, variant.model.decoder.modules()))
    return not variant.has_bound and variant.codes_are_scored and not held


def _terms(variant: Variant, y: Tensor, size: int) -> dict[str, float]:
    """Each site's part of the objective in training mode, nats per datum, weighted as it was optimised."""
    before = Snapshot(variant)
    with in_mode(variant, training=True), pyro.validation_enabled(False), seeded(0):
        total = float(variant.loss(variant.model, variant.guide)(y, size)) / size
    before.restore(variant)  # statistics move in training mode
    with in_mode(variant, training=True), pyro.validation_enabled(False), seeded(0):
        guide, model = traces(variant.model, variant.guide, y, size)
    before.restore(variant)
    parts = {}
    for sign, letter, trace in ((-1, "q", guide), (1, "p", model)):
        for name, site in trace.nodes.items():
            if site["type"] == "sample":
                kind = "factor of" if name.startswith("penalty") else f"{'-' if sign < 0 else ''}log {letter}"
                parts[f"{kind} {name}"] = sign * float(site["log_prob_sum"]) / size + 0.0  # no -0
    if target_of(variant.loss) not in (None, "elbo"):
        parts["the estimator"] = -total - sum(parts.values())  # what it makes of its draws, beside one draw's terms
    return parts


def _at_weight_one(variant: Variant, y: Tensor, weight: float) -> list[str]:
    """What scale stands for a KL weight, where one does: for a normal or a Laplace likelihood whose scale is fixed.

    Divided by the weight w, the objective is that of weight 1 with the scale ``sqrt(w) s`` of a normal, where
    ``|x - loc|**2 / (2 s**2)`` stands, and ``w s`` of a Laplace, where ``|x - loc| / s`` stands. What is added does not
    depend on the networks. A scale that is learned would not stay there, and no other law is the same function of w.
    """
    if weight == 1.0 or not variant.has_bound:
        return []
    with in_mode(variant, training=False), torch.enable_grad(), pyro.validation_enabled(False):
        law: Any = variant.model.x_given_z(variant.guide.posterior(y[:2]).sample())
        law = of_coordinate(law)
        moves = hasattr(variant.model.likelihood, "observe")
        if type(law) not in FACTORS or moves or law.scale.requires_grad or law.scale.unique().numel() != 1:
            return []
        name, power = FACTORS[type(law)]
        scale = float(law.scale.flatten()[0])
    return [f"with {name} {scale:.4g} it amounts to {name} {weight**power * scale:.4g} at weight 1"]


def receipt(variant: Variant, y: Tensor, settings: dict[str, Any]) -> str:
    """Lines of text: the objective at the weights that were kept, on ``y`` [rows, *x_shape] in the model's units."""
    model = variant.model
    shift = float(log_jacobian(variant))
    parts = _terms(variant, y, int(settings["rows"]))
    weight = variant.kl_weight
    loss = -sum(parts.values()) - shift
    lines = [
        ("variant", f"{variant.name}, {settings['steps']} steps of {settings['batch_size']}, lr {settings['lr']:g}"),
        ("objective", nature(variant)),
        ("loss", f"{loss:.5g} nats per datum, in the data's units, on {len(y)} of the data; minus the sum of:"),
        *((f"  {name}", f"{value:+.5g}") for name, value in parts.items()),
        ("  log Jacobian", f"{shift:+.5g}"),
        ("likelihood", describe(model.likelihood)),
        ("prior", describe(model.prior)),
        ("guide", type(variant.guide).__name__),
        ("KL weight", "none: p(z) is not in the objective" if not variant.codes_are_scored else f"{weight:.4g}"),
    ]
    lines += [("", text) for text in _at_weight_one(variant, y, weight)]
    lines += [("penalty", describe(penalty)) for penalty in model.penalties] or [("penalties", "none")]
    held, floor = frozen_parts(variant), at_floor(variant, y)
    if held:
        lines.append(("frozen", f"{', '.join(held)}: in eval mode throughout, never trained"))
    if floor is not None:
        lines.append(("caution", floor))
    if shrinks(variant):
        lines.append(("caution", "no minimiser: codes can shrink while the decoder grows; penalise the decoder too"))
    lines += [("data scale", repr(model.scale)), ("estimator", estimator(variant))]
    return "\n".join(f"{name:<22}{text}" for name, text in lines)


def estimator(variant: Variant) -> str:
    """The estimator of the loss and its number of draws."""
    particles = variant.loss.num_particles
    name = repr(variant.loss) if isinstance(variant.loss, PerDatumELBO) else type(variant.loss).__name__
    return f"{name}, {particles} draw{'s' * (particles > 1)} per datum and step"
