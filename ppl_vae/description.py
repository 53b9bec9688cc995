"""A description of a pair in words: generative process, guide and loss."""

from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .variant import Variant

__all__ = ["Description", "describe"]


class Description(NamedTuple):
    """A pair in three lines of text.

    Attributes:
        model: The generative process, p(z) and p(x | z).
        guide: q(z | x).
        loss: The loss that training minimises, in nats. With a point-mass guide it is a MAP objective.
    """

    model: str
    guide: str
    loss: str


def describe(variant: Variant) -> Description:
    """Describe a pair by the ``formula`` of each of its parts.

    A part of your own is described by the name of its class, unless it has a text attribute ``formula``.

    Example:
        >>> from ppl_vae import VARIANTS
        >>> from ppl_vae.models import StudentT
        >>> describe(VARIANTS["sigma_vae"]((6,), 2, likelihood=StudentT(df=3)))
        Description(model='z ~ Normal(0, 1); x ~ StudentT(3, loc(z), scale), scale learned',
                    guide='Normal(loc(x), scale(x))', loss='-ELBO')
    """
    return Description(_process(variant), _formula(variant.guide), _loss(variant))


def _formula(part: Any) -> str:
    """The ``formula`` of a part, or the name of its class."""
    return str(getattr(part, "formula", type(part).__name__))


def _process(variant: Variant) -> str:
    """The generative process, one step for z and one for x."""
    model = variant.model
    lines = [f"z ~ {_formula(model.prior)}", f"x ~ {_formula(model.likelihood)}"]
    lines += [f"{name} on the weights of the decoder" for name in _parametrisations(model.decoder)]
    return "; ".join(lines)


def _parametrisations(network: nn.Module) -> list[str]:
    """The names of the parametrisations of torch in a network, such as SpectralNorm."""
    layers: list[Any] = [layer for layer in network.modules() if is_parametrized(layer)]
    steps = [step for layer in layers for steps in layer.parametrizations.values() for step in steps]
    return sorted({type(step).__name__.strip("_") for step in steps})


def _loss(variant: Variant) -> str:
    """The loss with its penalties."""
    penalties = [_formula(penalty) for penalty in variant.model.penalties]
    terms = " + ".join([f"-{_objective(variant)}", *penalties])
    return terms if variant.has_bound else f"{terms}, MAP"


def _objective(variant: Variant) -> str:
    """The objective that training maximises, without penalties."""
    if variant.has_bound:
        return _weighted(_formula(variant.loss), "KL", variant)
    if not variant.codes_are_scored:
        return "log p(x | z)"
    return _weighted("log p(x, z)", "log p(z)", variant)


def _weighted(objective: str, term: str, variant: Variant) -> str:
    """The objective, with a note on the weight of one of its terms where that weight is not 1."""
    weight = variant.model.kl_weight
    return objective if weight is None else f"{objective} ({term} times {_formula(weight)})"
