"""SVI of any Pyro pair, with the call of ``pyro.infer.SVI`` and a step that runs from a graph."""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.util import warn_if_nan
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from .movers import Joint, Mover
from .step import Graph, Step

__all__ = ["SVI"]

Program = Callable[..., Any]
GRADED = WeakIdKeyDictionary()  # parameters that have had a gradient, from whatever SVI: Pyro leaves zeros in theirs


class SVI(pyro.infer.SVI):
    """``pyro.infer.SVI`` whose step runs from a graph where the pair is static: the same gradients to the last bit.

    Static means what it means to ``jax.jit``: what changes from step to step is a tensor, an argument or a buffer
    written in place. Shapes, modes, attributes and hooks choose a graph. A pair that is seen to break this runs
    eagerly, and ``reason`` says why. What cannot be seen, a value in a file say, is found by comparing the graph with
    the eager step again and again (see ``Step``), and raises.

    Losses that come as a list, estimators without a differentiable loss and every optimizer of ``pyro.optim`` work as
    under Pyro. ``step`` returns a tensor of shape [], which prints and compares as Pyro's float does.

    Args:
        model: p, with ``pyro.param``, ``pyro.module`` or none of ours.
        guide: q.
        optim: One of ``pyro.optim``; or what makes a torch optimizer of parameters.
        loss: An ELBO, or a function ``loss(model, guide, *args)`` to differentiate.
        loss_and_grads: As in Pyro; it is called eagerly.
        num_samples, num_steps: As in Pyro, for its deprecated ``run``.
        backend: ``"auto"`` (fx), ``"eager"``; ``"fx"``, torch's kernels one by one; ``"inductor"``, compiled;
            ``"cudagraph"``, one launch per step.

    Raises:
        ValueError: If the backend or the optimizer cannot be used; the message says what can.

    Example:
        >>> import pyro, torch
        >>> from ppl_vae import VARIANTS
        >>> variant = VARIANTS["sigma_vae"](x_shape=(6,), z_dim=2)
        >>> with pyro.get_param_store().scope():
        ...     svi = SVI(optim=pyro.optim.Adam({"lr": 1e-3}), **variant._asdict())
        ...     losses = [svi.step(torch.randn(16, 6)) for _ in range(5)]
        >>> losses[-1].shape, svi.reason
        (torch.Size([]), None)
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: Any,
        loss: Any,
        loss_and_grads: Program | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, guide, _optimizer(optim), loss, loss_and_grads, num_samples, num_steps, **kwargs)
        self.backend = backend
        differentiable, reason = _differentiable(loss, loss_and_grads)
        self._step = _PairStep(self, differentiable, getattr(loss, "__self__", loss), reason)

    @property
    def reason(self) -> str | None:
        """Why the last step ran eagerly; None where it ran from a graph, or will."""
        return self._step.reason

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Move the parameters once; the loss, in nats, of shape [], on its device: nothing waits for it."""
        if any(ours is not given for ours, given in zip(self._step.parts, _parts(self), strict=True)):
            before = self._step  # a model, a guide, gradients or an optimizer have been put in the place of another
            same = before.parts[2] is self.loss_and_grads
            reason = before.refused_at_once if same else "loss_and_grads has been replaced"
            self._step = _PairStep(self, before.differentiable if same else None, before.elbo, reason)
        return self._step(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer. Parameters are in Pyro's store and in modules, which keep their own."""
        return {"optim": self.optim.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set a state from ``state_dict``, for parameters that have been seen and for those that will be."""
        waiting = dict(state["optim"])
        if not isinstance(self.optim, Joint):
            for parameter, optimizer in self.optim.optim_objs.items():
                name = pyro.get_param_store().param_name(parameter)
                if name in waiting:
                    pyro.optim.optim._load_state_dict(optimizer, waiting.pop(name))
        self.optim.set_state(waiting)


class _PairStep(Step):
    """A step of a model and a guide, whose parameters are those that Pyro shows in that step."""

    def __init__(self, svi: SVI, differentiable: Program | None, loss: Any, reason: str | None) -> None:
        super().__init__(self._loss, None, [svi.model, svi.guide], svi.backend, loss)
        self.svi, self.differentiable, self.mover = svi, differentiable, Mover(svi.optim)
        self.parts, self.refused_at_once = _parts(svi), reason
        self.refused = self.refused or reason
        self.found: dict[Tensor, str] = {}
        self.names: list[str] = []  # of the parameters in Pyro's store
        self.kept: list[Tensor] = []
        self.marked: Sequence[Tensor] = ()

    @property
    def parameters(self) -> list[Tensor]:
        """The unconstrained parameters of the last eager or recorded pass."""
        return list(self.found)

    def _loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss, while Pyro shows the parameters."""
        run = self.differentiable or self.svi.loss_and_grads
        with poutine.trace(param_only=True) as seen:
            loss = run(self.svi.model, self.svi.guide, *args, **kwargs)
        sites: Any = seen.trace.nodes.items()
        self.found = {site["value"].unconstrained(): name for name, site in sites}
        return loss

    def _obstacle(self, values: Sequence[Any]) -> str | None:
        if not self._store_is_as_it_was():
            self.runs.clear()  # graphs of parameters that nobody has any more
            self.names, self.kept = [], []
        if any([parameter.grad is not None for parameter in self.kept]):
            return "a parameter has a gradient already, to which this step adds its own"
        return super()._obstacle(values)

    def _store_is_as_it_was(self) -> bool:
        return all(map(is_, map(pyro.get_param_store()._params.get, self.names), self.kept))

    def _eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step as Pyro takes it."""
        loss = self._loss(*args, **kwargs)
        if self.differentiable is not None and getattr(loss, "requires_grad", False):
            loss.backward()
        given = [parameter for parameter in self.found if parameter.grad is not None]
        self._move(given, [parameter.grad for parameter in given], [p for p in self.found if p.grad is None])  # type: ignore[misc]
        for parameter in given:
            parameter.grad = None
        store = pyro.get_param_store()._params
        self.kept = [parameter for parameter, name in self.found.items() if store.get(name) is parameter]
        self.names = [self.found[parameter] for parameter in self.kept]
        self.surroundings.watch(self.found)
        return _as_tensor(loss)

    @torch.no_grad()
    def _move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], idle: Sequence[Tensor]) -> None:
        """Move as Pyro does: a parameter that once had a gradient has one of zeros where this step gives it none."""
        if self.marked is not parameters:
            GRADED.update(dict.fromkeys(parameters, True))
            self.marked = parameters
        late = [parameter for parameter in idle if parameter in GRADED]
        if late:
            parameters, gradients = [*parameters, *late], [*gradients, *map(torch.zeros_like, late)]
        self.mover(parameters, gradients)

    def _prove_again(
        self, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]
    ) -> tuple[list[Tensor], Callable[[], None]]:
        found, rewind = super()._prove_again(graph, args, kwargs, inputs)
        warn_if_nan(found[0], "loss")  # as Pyro does in each step; here the loss is known anyway
        return found, rewind

    def _identity(self) -> Any:
        return id(self._whole()) if self.backend == "cudagraph" else None

    def _whole(self) -> Any:
        parameters = [parameter for parameter in self.found if parameter.requires_grad]
        adam = self.mover.fused(parameters) if parameters and parameters[0].is_cuda else None
        return adam if adam is not None and len(adam.param_groups) == 1 else None


def _parts(svi: SVI) -> tuple[Any, ...]:
    """What an SVI is made of, as Pyro's step reads it."""
    return svi.model, svi.guide, svi.loss_and_grads, svi.optim


def _as_tensor(loss: Any) -> Any:
    """A loss as a tensor of shape [], with all its digits; several losses stay what Pyro makes of them."""
    if isinstance(loss, tuple):
        return type(loss)(part.item() if isinstance(part, Tensor) else part for part in loss)
    return loss.detach() if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64)


def _optimizer(optim: Any) -> PyroOptim:
    """An optimizer of Pyro; what makes a torch optimizer of all parameters becomes one."""
    if isinstance(optim, PyroOptim):
        return optim
    if isinstance(optim, Optimizer) or not callable(optim):
        wanted = "pyro.optim.Adam({...}) or a function of the parameters such as torch.optim.SGD"
        raise ValueError(f"optim has to be {wanted}, got {type(optim).__name__}")
    return Joint(optim)


def _differentiable(loss: Any, loss_and_grads: Program | None) -> tuple[Program | None, str | None]:
    """What to differentiate for the gradients that Pyro's SVI would take, or the reason why there is no such thing."""
    if loss_and_grads is not None:
        return None, "loss_and_grads is a function of your own"
    if not isinstance(loss, ELBO):
        return loss, None
    name, family = type(loss).__name__, type(loss).__mro__
    owner, other = (
        next((part for part in family if method in vars(part)), None)
        for method in ("differentiable_loss", "loss_and_grads")
    )
    if owner is None or other is None:
        return None, f"{name} has no differentiable_loss"
    if name.startswith("Jit"):
        return None, f"{name} compiles itself, by torch.jit"
    if family.index(other) < family.index(owner):
        return None, f"{name} has a loss_and_grads of its own, which its differentiable_loss knows nothing of"
    if owner is not other and not _calls(vars(other)["loss_and_grads"], "differentiable_loss"):
        return None, f"the loss_and_grads of {name} does not call its differentiable_loss"
    differentiable: Program = loss.differentiable_loss  # type: ignore[attr-defined]
    return differentiable, None


def _calls(method: Any, name: str) -> bool:
    """Whether the code of a method names another one."""
    return name in method.__code__.co_names
