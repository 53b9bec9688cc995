"""Contracts on the loss: it takes the pair, it is a finite number, and it has a gradient for every parameter."""

import pyro
import torch
from torch import Tensor

from ..variant import set_mode
from .registry import Contract, Trial, contract
from .training_pass import Pass

__all__ = ["LOSS", "WEIGHING"]

WEIGHING: list[Contract] = []  # their functions take a Pass
LOSS: list[Contract] = []  # their functions take a Trial


@contract(WEIGHING, "importance weights", remedy="the loss has to be computable in training mode", gate=True)
def importance_weights(run: Pass) -> str | None:
    """A loss that weighs draws accepts this pair at the start, in the middle and at the end of the KL schedule."""
    variant = run.variant
    if not getattr(variant.loss, "weighs_draws", False):
        return None
    steps = (2,) if variant.model.kl_weight is None else (0, 1, 2)
    for step in steps:
        variant.model.advance(step, 2)
        try:
            with pyro.validation_enabled(True), pyro.get_param_store().scope():
                variant.loss(variant.model, variant.guide)(run.y, run.size)
        except ValueError as error:  # the message of the loss gives the reason
            return str(error).partition("\n")[0]
    return None


@contract(
    LOSS,
    "loss",
    remedy="the loss is an ELBO with a differentiable_loss: Pyro's RenyiELBO has none, ppl_vae.elbo.IWAE has",
    gate=True,
)
def finite_loss(trial: Trial) -> str | None:
    """With all schedules at their end, the loss is one finite number."""
    loss = _loss(trial)
    if loss.ndim == 0 and bool(loss.isfinite()):
        return None
    return f"the loss is {loss.tolist()}, wanted one finite number (look at log_prob at these data, and at the scales)"


@contract(LOSS, "gradients", remedy="the loss has to be differentiable")
def gradients(trial: Trial) -> str | None:
    """Every parameter that requires a gradient gets a finite one."""
    named = [
        (f"{type(half).__name__}.{name}", parameter)
        for half in trial.variant[:2]
        for name, parameter in half.named_parameters()
        if parameter.requires_grad
    ]
    parameters = [parameter for _, parameter in named]
    if not parameters:
        return None  # the contract "parameters" reports this
    found: tuple[Tensor | None, ...] = torch.autograd.grad(_loss(trial), parameters, allow_unused=True)
    for (name, _), gradient in zip(named, found, strict=True):
        if gradient is None:
            return f"{name} gets no gradient (forward does not use it: use it, or delete it)"
        if not bool(gradient.isfinite().all()):
            return f"{name} gets a gradient that is not finite (bound the scales away from 0)"
    return None


def _loss(trial: Trial) -> Tensor:
    """The loss of a training step with all schedules at their end."""
    variant = trial.variant
    set_mode(variant, training=True)
    variant.model.advance(1, 1)
    loss: Tensor = variant.loss(variant.model, variant.guide)(trial.y)
    return loss
