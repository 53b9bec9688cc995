"""SVI of any model and guide of Pyro, with the interface of ``pyro.infer.SVI`` and a step that runs from a graph."""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, NamedTuple

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
GRADED = WeakIdKeyDictionary()  # the parameters that have had a gradient, in any SVI


class SVI(pyro.infer.SVI):
    """``pyro.infer.SVI`` with a step that runs from a graph if the model and the guide are static.

    The gradients equal those of Pyro to the last bit. As in ``jax.jit``, a program is static if everything that changes
    from step to step is a tensor, either an argument or a buffer that is written in place. Shapes, modes, attributes
    and hooks choose a graph. If the model or the guide turns out not to be static, the step runs eagerly, and
    ``reason`` says why. Python cannot see some changes, such as a number in a file. They are found when the graph is
    compared with the eager step, which happens at growing intervals (see ``Step``), and raise ``Stale``.

    Losses that are lists, estimators without a differentiable loss and all optimizers of ``pyro.optim`` work as in
    Pyro. ``step`` returns a tensor of shape [], which prints and compares like the float that Pyro returns.

    Args:
        model: The model p, any function or module of Pyro.
        guide: The guide q.
        optim: An optimizer of ``pyro.optim``, or a function from parameters to an optimizer of torch.
        loss: An ELBO, or a function ``loss(model, guide, *args)`` to differentiate.
        loss_and_grads: As in Pyro. If it is given, steps run eagerly.
        num_samples, num_steps: As in Pyro, for the deprecated method ``run``.
        backend: What runs a step: ``"auto"`` (which is fx), ``"eager"``, ``"fx"`` (torch's kernels one by one),
            ``"inductor"`` (compiled) or ``"cudagraph"`` (one launch per step).

    Raises:
        ValueError: If the backend or the optimizer cannot be used. The message says which ones can.

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
        """Why the last step ran eagerly. None if it ran from a graph, or if nothing speaks against a graph."""
        return self._step.reason

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Move the parameters once.

        Returns:
            The loss in nats, a tensor of shape [] on its device. The step does not wait for its value.
        """
        if not all(map(is_, self._step.parts, _parts(self))):
            self._step = self._step_of_new_parts()
        return self._step(*args, **kwargs)

    def _step_of_new_parts(self) -> "_PairStep":
        """A step for the model, guide, gradients or optimizer that have been assigned to this object."""
        before = self._step
        if before.parts.loss_and_grads is self.loss_and_grads:
            return _PairStep(self, before.differentiable, before.elbo, before.refused_at_once)
        return _PairStep(self, None, before.elbo, "loss_and_grads has been replaced")

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer. The parameters are saved by Pyro's store and by their modules."""
        return {"optim": self.optim.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that ``state_dict`` returned. An unknown parameter gets its part of it at its first step."""
        waiting = dict(state["optim"])
        if not isinstance(self.optim, Joint):
            for parameter, optimizer in self.optim.optim_objs.items():
                name = pyro.get_param_store().param_name(parameter)
                if name in waiting:
                    pyro.optim.optim._load_state_dict(optimizer, waiting.pop(name))
        self.optim.set_state(waiting)


class _PairStep(Step):
    """A step of a model and a guide. Its parameters are those that Pyro shows while the loss is computed.

    Args:
        svi: The SVI object that takes the step.
        differentiable: The loss to differentiate, as a function of model, guide and arguments. None if there is none.
        loss: The ELBO or the function that was given to SVI.
        reason: Why all steps run eagerly. None if a graph is possible.
    """

    def __init__(self, svi: SVI, differentiable: Program | None, loss: Any, reason: str | None) -> None:
        super().__init__(self._loss, None, [svi.model, svi.guide], svi.backend, loss)
        self.svi = svi
        self.differentiable = differentiable
        self.mover = Mover(svi.optim)
        self.parts = _parts(svi)
        self.refused_at_once = reason
        self.refused = self.refused or reason
        self.found: dict[Tensor, str] = {}  # the parameters of the last pass, with their names
        self.kept: list[Tensor] = []  # those among them that are in Pyro's store
        self.names: list[str] = []  # the names of ``kept``
        self.marked: Sequence[Tensor] = ()  # the parameters that were last entered into GRADED

    @property
    def parameters(self) -> list[Tensor]:
        """The unconstrained parameters of the last eager or recorded pass."""
        return list(self.found)

    def _loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, and note the parameters that Pyro shows."""
        run = self.differentiable or self.svi.loss_and_grads
        with poutine.trace(param_only=True) as seen:
            loss = run(self.svi.model, self.svi.guide, *args, **kwargs)
        sites: Any = seen.trace.nodes.items()
        self.found = {site["value"].unconstrained(): name for name, site in sites}
        return loss

    def _obstacle(self, values: Sequence[Any]) -> str | None:
        if not self._store_is_as_it_was():
            self.runs.clear()  # these graphs move parameters that are not in the store any more
            self.names, self.kept = [], []
        if any([parameter.grad is not None for parameter in self.kept]):
            return "a parameter has a gradient already, and an eager step adds its own to it"
        return super()._obstacle(values)

    def _store_is_as_it_was(self) -> bool:
        stored = map(pyro.get_param_store()._params.get, self.names)
        return all(map(is_, stored, self.kept))

    def _eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take a step as Pyro does."""
        loss = self._loss(*args, **kwargs)
        if self.differentiable is not None and getattr(loss, "requires_grad", False):
            loss.backward()
        given = [parameter for parameter in self.found if parameter.grad is not None]
        idle = [parameter for parameter in self.found if parameter.grad is None]
        self._move(given, [parameter.grad for parameter in given], idle)  # type: ignore[misc]
        for parameter in given:
            parameter.grad = None
        store = pyro.get_param_store()._params
        self.kept = [parameter for parameter, name in self.found.items() if store.get(name) is parameter]
        self.names = [self.found[parameter] for parameter in self.kept]
        self.surroundings.watch_tensors(self.found)
        return _as_tensor(loss)

    @torch.no_grad()
    def _move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], idle: Sequence[Tensor]) -> None:
        """Move parameters as Pyro does.

        Pyro leaves zeros in ``.grad`` after a step. A parameter that has had a gradient, and has none in this step, is
        therefore moved with a gradient of zeros.
        """
        if self.marked is not parameters:
            GRADED.update(dict.fromkeys(parameters, True))
            self.marked = parameters
        with_zeros = [parameter for parameter in idle if parameter in GRADED]
        if with_zeros:
            parameters = [*parameters, *with_zeros]
            gradients = [*gradients, *map(torch.zeros_like, with_zeros)]
        self.mover(parameters, gradients)

    def _prove_again(
        self, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]
    ) -> tuple[list[Tensor], Callable[[], None]]:
        found, rewind = super()._prove_again(graph, args, kwargs, inputs)
        warn_if_nan(found[0], "loss")  # Pyro does so in each step; here the value of the loss has been read anyway
        return found, rewind

    def _optimizer_kind(self) -> Any:
        return id(self._whole_optimizer()) if self.backend == "cudagraph" else None

    def _whole_optimizer(self) -> Any:
        parameters = [parameter for parameter in self.found if parameter.requires_grad]
        adam = self.mover.fused(parameters) if parameters and parameters[0].is_cuda else None
        return adam if adam is not None and len(adam.param_groups) == 1 else None


class _Parts(NamedTuple):
    """The attributes of an SVI object that Pyro's step reads."""

    model: Program
    guide: Program
    loss_and_grads: Any
    optim: PyroOptim


def _parts(svi: SVI) -> _Parts:
    return _Parts(svi.model, svi.guide, svi.loss_and_grads, svi.optim)


def _as_tensor(loss: Any) -> Any:
    """A loss as a tensor of shape [], with all its digits. A tuple of losses stays a tuple of numbers, as in Pyro."""
    if isinstance(loss, tuple):
        return type(loss)(part.item() if isinstance(part, Tensor) else part for part in loss)
    return loss.detach() if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64)


def _optimizer(optim: Any) -> PyroOptim:
    """An optimizer of Pyro. A function from parameters to a torch optimizer is wrapped in a ``Joint``."""
    if isinstance(optim, PyroOptim):
        return optim
    if isinstance(optim, Optimizer) or not callable(optim):
        wanted = "pyro.optim.Adam({...}) or a function of the parameters such as torch.optim.SGD"
        raise ValueError(f"optim has to be {wanted}, got {type(optim).__name__}")
    return Joint(optim)


def _differentiable(loss: Any, loss_and_grads: Program | None) -> tuple[Program | None, str | None]:
    """The loss whose gradients Pyro's SVI would take, or the reason why there is no such function."""
    if loss_and_grads is not None:
        return None, "loss_and_grads was given as an argument"
    if not isinstance(loss, ELBO):
        return loss, None
    name, family = type(loss).__name__, type(loss).__mro__
    of_loss = _class_with("differentiable_loss", family)
    of_gradients = _class_with("loss_and_grads", family)
    if of_loss is None or of_gradients is None:
        return None, f"{name} has no differentiable_loss"
    if name.startswith("Jit"):
        return None, f"{name} compiles itself with torch.jit"
    if family.index(of_gradients) < family.index(of_loss):
        return None, f"{name} overrides loss_and_grads and not differentiable_loss, so that the two may differ"
    if of_loss is not of_gradients and not _calls(vars(of_gradients)["loss_and_grads"], "differentiable_loss"):
        return None, f"the loss_and_grads of {name} does not call its differentiable_loss"
    differentiable: Program = loss.differentiable_loss  # type: ignore[attr-defined]
    return differentiable, None


def _class_with(method: str, family: tuple[type, ...]) -> type | None:
    """The first class of a method resolution order that defines a method. None if none does."""
    return next((part for part in family if method in vars(part)), None)


def _calls(method: Any, name: str) -> bool:
    """Whether the code of a method contains the name of another method."""
    return name in method.__code__.co_names
