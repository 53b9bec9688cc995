"""Put a variant together from parts, or replace its prior."""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.infer import ELBO
from torch import nn

from .elbo import PathwiseELBO, estimator
from .guides import Guide, MeanField, encoder as encoder_for
from .guides.networks import encoder_of
from .models import LatentVariableModel, StandardNormal
from .models.half import of_pyro
from .models.networks import WIDTH
from .models.outputs import default_decoder, outputs_of
from .recipes import PAIR, recipe, with_part
from .variant import Variant

__all__ = ["GuideFamily", "PriorFamily", "pair", "with_prior"]

GuideFamily = Callable[[nn.Module, tuple[int, ...], int], Guide]
PriorFamily = Callable[[int], nn.Module]


def pair(
    x_shape: Iterable[int],
    z_dim: int,
    *,
    likelihood: nn.Module,
    guide: GuideFamily = MeanField,
    prior: nn.Module | PriorFamily | None = None,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    penalties: Iterable[nn.Module] = (),
    kl_weight: nn.Module | None = None,
    loss: ELBO | str | None = None,
    width: int | None = None,
) -> Variant:
    """Put a model and a guide together from parts. Every builder of the catalogue calls this function.

    Args:
        x_shape: Shape of one datum, without the batch, for example ``(3, 32, 32)``.
        z_dim: Size of a code.
        likelihood: The likelihood p(x | z), a module with an attribute ``outputs``. See ``ppl_vae.models``, and
            ``models.outputs`` for a likelihood of your own.
        guide: The family of q(z | x): a class, or any callable ``(encoder, x_shape, z_dim) -> Guide``.
        prior: The prior p(z), of event shape [z_dim], or a callable ``z_dim -> prior`` such as its class. By default it
            is a standard normal.
        encoder: A module from [rows, *x_shape] to [rows, width]. By default it is chosen by ``x_shape``. For categories
            it then begins with a ``OneHot``, which you put before an encoder of your own yourself.
        decoder: A module from [rows, z_dim] to ``likelihood.outputs * x_dim`` numbers per row, or to
            ``likelihood.outputs`` where these are flat. By default it is chosen by ``x_shape``. For flat outputs it is
            a perceptron.
        penalties: Terms that are added to the training objective. See ``ppl_vae.models.penalties``.
        kl_weight: A ``KLWeight`` or ``Masked``, which acts on the site z of the model and of the guide in training.
        loss: The estimator of the bound, or its name with options, for example ``"dreg:num_particles=16"``. By default
            it is ``PathwiseELBO`` with one draw.
        width: Units of a hidden layer in the networks that are chosen by ``x_shape``, 256 by default.

    Raises:
        ValueError: If a shape is empty, the prior's event shape is not [z_dim], or a part is of the wrong kind.
    """
    x_shape = _checked_shape(x_shape, z_dim)
    parts: dict[str, Any] = {
        "likelihood": likelihood,
        "guide": guide,
        "prior": _made_prior(prior, z_dim),
        "encoder": encoder,
        "decoder": decoder,
        "penalties": tuple(penalties),
        "kl_weight": kl_weight,
        "loss": loss,
        "width": width,
    }
    _check_parts(parts)

    units = WIDTH if width is None else width
    prior = _checked_prior(StandardNormal(z_dim) if prior is None else parts["prior"], z_dim)
    if encoder is None:
        encoder = encoder_of(likelihood, x_shape, functools.partial(encoder_for, width=units))
    decoder = default_decoder(likelihood, z_dim, x_shape, units) if decoder is None else decoder

    model = LatentVariableModel(prior, decoder, likelihood, x_shape, parts["penalties"])
    inference = guide(encoder, x_shape, z_dim)
    for penalty in model.penalties:
        attach: Any = getattr(penalty, "attach", None)
        if attach is not None:
            attach(inference)
    model.kl_weight = inference.kl_weight = kl_weight
    given = {keyword: part for keyword, part in parts.items() if part is not None}
    model.recipe = recipe(PAIR, x_shape, z_dim, given)
    return Variant(model, inference, _estimator(loss))


def _checked_shape(x_shape: Iterable[int], z_dim: int) -> tuple[int, ...]:
    if isinstance(x_shape, str | int):
        raise ValueError(f"x_shape must be the shape of one datum, such as (1, 28, 28), got {x_shape!r}")
    shape = tuple(int(side) for side in x_shape)
    if not shape or min(shape) < 1 or z_dim < 1:
        raise ValueError(f"x_shape and z_dim must be positive, got {shape} and {z_dim}")
    return shape


def _check_parts(parts: dict[str, Any]) -> None:
    """Check the types of the parts, so that a wrong one is reported by its name."""
    for name in ("likelihood", "prior", "encoder", "decoder"):
        _check_module(name, parts[name])
    outputs_of(parts["likelihood"])
    if not callable(parts["guide"]):
        raise ValueError(f"guide must be a family such as MeanField, got {parts['guide']!r}")
    if not isinstance(parts["loss"], ELBO | str | None):
        raise ValueError(f"loss must be an instance of pyro.infer.ELBO or a name such as 'dreg', got {parts['loss']!r}")
    _check_width(parts)


def _made_prior(prior: Any, z_dim: int) -> Any:
    """The prior that a family makes for a size of the code. Anything else is returned as it is."""
    is_family = callable(prior) and not isinstance(prior, nn.Module | torch.distributions.Distribution)
    return prior(z_dim) if is_family else prior


def _check_module(name: str, part: Any) -> None:
    if isinstance(part, torch.distributions.Distribution):
        raise ValueError(
            f"{name} is a distribution, {type(part).__name__}, wanted a module whose forward returns it: keep learned "
            "numbers in nn.Parameter, and the transforms of a flow in nn.ModuleList"
        )
    if part is not None and not isinstance(part, nn.Module):
        raise ValueError(f"{name} must be an instance of nn.Module, got {part!r}")


def _check_width(parts: dict[str, Any]) -> None:
    width = parts["width"]
    if width is None:
        return
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width must be a whole number of at least 1, got {width!r}")
    if parts["encoder"] is not None and parts["decoder"] is not None:
        raise ValueError("width is for default networks, and both encoder and decoder were given: drop it")


def _checked_prior(prior: nn.Module, z_dim: int) -> nn.Module:
    event_shape = tuple(of_pyro("the prior", prior()).event_shape)
    if event_shape != (z_dim,):
        raise ValueError(
            f"the prior has event shape {list(event_shape)}, wanted [{z_dim}]: call .to_event(1) in its forward"
        )
    return prior


def _estimator(loss: ELBO | str | None) -> ELBO:
    if loss is None:
        return PathwiseELBO()
    return estimator(loss) if isinstance(loss, str) else loss


def with_prior(variant: Variant, prior: nn.Module) -> Variant:
    """The same variant with another prior p(z), for example an ex-post mixture. All other parts are shared."""
    model = copy.copy(variant.model)
    model._modules = dict(variant.model._modules)
    model.prior = prior
    model.recipe = model.recipe and with_part(model.recipe, "prior", prior)
    return variant._replace(model=model)
