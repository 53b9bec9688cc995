"""SVI of any Pyro pair, with the call of ``pyro.infer.SVI`` and a step that runs from a graph."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from .adam import Adam
from .step import Step

__all__ = ["SVI"]

Program = Callable[..., Any]


class SVI:
    """``pyro.infer.SVI`` for static pairs: gradients are those of Pyro to the last bit, for the same noise.

    Static means what it means to ``jax.jit``: shapes of the arguments, and train or eval mode, choose a graph; what
    changes from step to step is a tensor, an argument or a buffer written in place; other Python values are frozen
    when the second step is recorded. A pair that is seen to break this runs eagerly, and ``reason`` says why.

    Parameters are held by object from the step in which Pyro's store first shows them.

    Args:
        model: p, with ``pyro.param``, ``pyro.module`` or none of ours.
        guide: q.
        optim: One of ``pyro.optim``, with a dictionary of arguments; or what makes a torch optimizer of parameters.
        loss: An ELBO, or a function ``loss(model, guide, *args)`` to differentiate.
        backend: ``"auto"`` (fx), ``"eager"``; ``"fx"``, torch's kernels one by one; ``"inductor"``, compiled;
            ``"cudagraph"``, one launch a step.

    Raises:
        ValueError: If the backend or the optimizer cannot be used; the message says what can.

    Example:
        >>> import pyro, torch
        >>> from ppl_vae import VARIANTS
        >>> variant = VARIANTS["sigma_vae"](x_shape=(6,), z_dim=2)
        >>> with pyro.get_param_store().scope():
        ...     svi = SVI(optim=pyro.optim.Adam({"lr": 1e-3}), **variant._asdict())
        ...     losses = [svi.step(torch.randn(16, 6)) for _ in range(3)]
        >>> losses[-1].shape, svi.reason
        (torch.Size([]), None)
    """

    def __init__(self, model: Program, guide: Program, optim: Any, loss: Any, backend: str = "auto") -> None:
        self.model, self.guide, self.loss, self.optim = model, guide, loss, _maker(optim)
        self.differentiable: Program | None = getattr(loss, "differentiable_loss", None)
        if self.differentiable is None and not hasattr(loss, "loss_and_grads"):
            self.differentiable = loss
        owners = [getattr(program, "__self__", program) for program in (model, guide)]
        modules = [part for owner in owners if isinstance(owner, nn.Module) for part in owner.modules()]
        self._step = Step(self._objective, None, modules, backend, loss)
        if self.differentiable is None:  # gradients are in place when such an estimator returns
            self._step.backward = lambda loss: None
            self._step.reason = f"{type(loss).__name__} has no differentiable_loss"

    @property
    def reason(self) -> str | None:
        """Why the step runs eagerly; None where it runs from a graph, or will."""
        return self._step.reason

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Move the parameters once; the loss, in nats, of shape [], on its device: nothing waits for it."""
        return self._step(*args, **kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss as Pyro gives it, without a gradient."""
        with torch.no_grad():
            return getattr(self.loss, "loss", self.loss)(self.model, self.guide, *args, **kwargs)

    def _objective(self, *args: Any, **kwargs: Any) -> Tensor:
        with poutine.trace(param_only=True) as seen:
            run = self.differentiable or self.loss.loss_and_grads
            loss = run(self.model, self.guide, *args, **kwargs)
        sites: Any = seen.trace.nodes.values()
        found = dict.fromkeys(site["value"].unconstrained() for site in sites)
        held = set(self._step.parameters)
        new = [parameter for parameter in found if parameter.requires_grad and parameter not in held]
        if new and self._step.optimizer is None:
            self._step.optimizer = self.optim(new)
        elif new:
            self._step.optimizer.add_param_group({"params": new})  # type: ignore[union-attr]
        return loss if isinstance(loss, Tensor) else torch.tensor(loss)


def _maker(optim: Any) -> Callable[[list[Tensor]], Optimizer]:
    """What makes one torch optimizer of all parameters, from one of Pyro's or from the maker itself."""
    if not isinstance(optim, PyroOptim):
        if isinstance(optim, Optimizer) or not callable(optim):
            wanted = "pyro.optim.Adam({...}) or a function of the parameters such as torch.optim.SGD"
            raise ValueError(f"optim has to be {wanted}, got {type(optim).__name__}")
        return optim
    if type(optim) is not PyroOptim or callable(optim.pt_optim_args) or optim.pt_clip_args:
        raise ValueError("optim has arguments a parameter, a schedule or clipping: pass a function of the parameters")
    make: Any = Adam if optim.pt_optim_constructor is torch.optim.Adam else optim.pt_optim_constructor
    arguments = dict(optim.pt_optim_args)
    try:
        make([torch.zeros(1)], **arguments)
    except TypeError:  # amsgrad, say, which ours has not
        make = optim.pt_optim_constructor
    return lambda parameters: make(parameters, **arguments)
