"""What a step reads beside its arguments, as far as Python can see it: attributes, tensors, hooks and modes."""

import dis
import functools
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from itertools import chain
from operator import call, is_, itemgetter
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

__all__ = ["Surroundings", "changed", "frozen", "is_plain", "modes", "open_handlers"]

NUMBERS = (bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
CONTAINERS = (list, dict, set, deque)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS = [
    value
    for name, value in vars(nn.modules.module).items()
    if name.startswith(("_global_forward", "_global_backward")) and isinstance(value, dict)
]
FEW = 100  # entries of a dictionary that holds settings; a longer one holds data
# Modules whose attributes have no part in what they compute: tensors, children, hooks and new attributes are looked at.
PASSIVE = (nn.Linear, nn.Sequential, nn.ModuleList, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity)
INTERNAL = vars(nn.Module()).keys() - {"training"}  # what a module keeps of its own, read elsewhere here
END = object()  # the last of what is compared one by one: a list that has grown is seen to differ


def is_plain(value: Any) -> bool:
    """Whether a Python value cannot change in place: a number, a name, a tuple of these."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    return isinstance(value, (*NUMBERS, float, complex))


def frozen(value: Any) -> Any:
    """A hashable stand-in for a Python value: equal stand-ins mean equal values, or one and the same object.

    A container that can change in place is known by its type alone.
    """
    if isinstance(value, float | complex):
        return type(value), repr(value)  # NaN equals itself, and -0.0 is another number than 0.0
    if isinstance(value, tuple):
        return type(value), *map(frozen, value)
    if isinstance(value, NUMBERS):
        return type(value), value
    return type(value) if isinstance(value, CONTAINERS) else id(value)


def modes() -> tuple[Any, ...]:
    """The modes of torch that are part of what a line of code computes, beside that of gradients."""
    return (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.get_default_dtype(),
        *[mode.device for mode in _function_modes() if isinstance(mode, DeviceContext)],
    )


def open_handlers() -> str | None:
    """Name the handlers that are open around a step and act on each of its calls; None where there are none."""
    if _PYRO_STACK:
        return f"a handler of Pyro is open around the step ({type(_PYRO_STACK[-1]).__name__})"
    if any(GLOBAL_HOOKS):
        return "a hook on all modules is registered"
    other = [mode for mode in _function_modes() if not isinstance(mode, DeviceContext)]
    return f"a mode of torch is open around the step ({type(other[-1]).__name__})" if other else None


def _function_modes() -> list[Any]:
    return _get_current_function_mode_stack() if torch._C._len_torch_function_stack() else []


class Look(NamedTuple):
    """What was seen at one time, arranged so that the same is recognised quickly.

    Attributes:
        readers, owners: What reads the attributes of an owner from its dictionary, and the dictionaries.
        values: What they were, as objects.
        every, sizes: The dictionaries of all owners, and how many attributes each had.
        views: The live values of other dictionaries, in one order.
        kept: What they held, as objects.
        hooks: Dictionaries of hooks that were empty.
        flags: Whether each watched tensor asks for a gradient, its type, and its hooks.
        outside: What functions see of their closures and globals.
        state: Hashable stand-ins by label.
        hooked: Where a hook stands that Python has to call in each step; None where there is none.
    """

    readers: list[Callable[[Any], Any]]
    owners: list[dict[str, Any]]
    values: list[Any]
    every: list[dict[str, Any]]
    sizes: list[int]
    views: list[Iterable[Any]]
    kept: list[Any]
    hooks: list[Any]
    flags: list[Any]
    outside: list[Any]
    state: dict[Any, Any]
    hooked: str | None


class Surroundings:
    """The Python side of a pair: what can change between two steps without being an argument of them.

    Seen are attributes of modules and of objects that own a model or a guide, modules and tensors that are replaced,
    ``requires_grad``, hooks, the closures and globals that a function names, and the entries of dictionaries, data
    classes and namespaces found there. Not seen are the items of lists, what is inside other objects, and files.

    Args:
        owners: Modules, functions, methods, and objects.
    """

    def __init__(self, owners: Iterable[Any] = ()) -> None:
        self.modules: dict[nn.Module, None] = {}
        self.objects: dict[int, Any] = {}
        self.functions: dict[int, FunctionType] = {}
        self.tensors: dict[Tensor, None] = {}
        self.last: Look | None = None
        self.numbered: tuple[Look | None, int] = None, -1
        self.known: dict[Any, int] = {}
        self.changes: Counter[str] = Counter()  # what made a new state of the one before
        self.alive: list[Any] = []  # objects known by id live as long as the ids are compared
        for owner in owners:
            self.add(owner)

    def add(self, owner: Any) -> None:
        """Watch a module and its children, a function, what a method belongs to, or an object."""
        if isinstance(owner, nn.Module):
            for module in owner.modules():
                self.meet(module)
        elif isinstance(owner, MethodType):
            self.add(owner.__func__)
            self.add(owner.__self__)
        elif isinstance(owner, functools.partial):
            for part in (owner.func, *owner.args, *owner.keywords.values()):
                self.add(part)
        elif isinstance(owner, FunctionType):
            self._reach(owner)
            self.last = None
        elif hasattr(owner, "__dict__") and not isinstance(owner, type | ModuleType | Tensor):
            self.objects[id(owner)] = owner
            self._reach(*_methods(owner))
            self.last = None

    def meet(self, module: nn.Module, *_: Any) -> None:
        """Watch one module; the name is that of a hook."""
        if module not in self.modules:
            self.modules[module] = None
            self.last = None
            self._reach(*_methods(module))

    def _reach(self, *functions: Any) -> None:
        """Watch functions of a user's, and those of the same package that they take from their closures and globals."""
        for function in functions:
            if (
                isinstance(function, FunctionType)
                and id(function) not in self.functions
                and _is_own(function.__module__)
            ):
                self.functions[id(function)] = function
                near = [getattr(function, "__wrapped__", None), *_outside(function)]
                package = _package(function)
                self._reach(
                    *[value for value in near if isinstance(value, FunctionType) and _package(value) == package]
                )

    @property
    def has_foreign_parts(self) -> bool:
        """Whether a module or an object is a user's: what torch and this library hold, changes with their knowledge."""
        return any(_is_own(type(owner).__module__) for owner in (*self.modules, *self.objects.values()))

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Watch whether tensors ask for a gradient and have hooks."""
        for tensor in tensors:
            if tensor not in self.tensors:
                self.tensors[tensor] = None
                self.last = None

    @contextmanager
    def met(self) -> Iterator[None]:
        """Watch the modules that are called inside: a pair of functions names none."""
        with nn.modules.module.register_module_forward_pre_hook(self.meet):
            yield

    def look(self) -> Look:
        """What there is to see now; the last look where nothing has changed since."""
        if self.last is None or not self._unchanged(self.last):
            self.last = self._look()
        return self.last

    @property
    def number(self) -> int:
        """Which of the states that were asked for so far the last look shows."""
        before, number = self.numbered
        if self.last is not None and self.last is not before:
            key = tuple(self.last.state.items())
            if key not in self.known:
                self.known[key] = len(self.known)
                self.alive += [self.last.values, self.last.kept, self.last.outside]
                self.changes.update([] if before is None else changed(before.state, self.last.state))
            number = self.known[key]
            self.numbered = self.last, number
        return number

    def _unchanged(self, last: Look) -> bool:
        """Whether there is nothing new, found by comparing objects and no values."""
        try:
            attributes = all(map(is_, chain.from_iterable(map(call, last.readers, last.owners)), last.values))
        except KeyError:  # an attribute is gone
            return False
        return (
            attributes
            and [*map(len, last.every)] == last.sizes
            and all(map(is_, chain.from_iterable(last.views), last.kept))
            and not any(last.hooks)
            and self._flags() == last.flags
            and all(map(is_, self._outside(), last.outside))
        )

    def _look(self) -> Look:
        readers, owners = list[Callable[[Any], Any]](), list[dict[str, Any]]()
        every = [vars(owner) for owner in (*self.modules, *self.objects.values())]
        views: list[Iterable[Any]] = []
        state: dict[Any, Any] = {}
        hooked = self._hook_on_a_tensor()
        empty: list[Any] = []
        for owner in (*self.modules, *self.objects.values()):
            place, kind = id(owner), type(owner).__name__
            names = [name for name in vars(owner) if name not in INTERNAL or not isinstance(owner, nn.Module)]
            if names and type(owner) not in PASSIVE:
                readers.append(itemgetter(*names, *names[:1]))  # two names at least, for one gives no tuple
                owners.append(vars(owner))
            state |= {(place, kind, name): frozen(vars(owner)[name]) for name in names}
            for where in _parts(owner):
                views.append(where.values())
                state |= {(place, kind, name): frozen(value) for name, value in where.items()}
            for name, entries in _entries(vars(owner) | _of_classes(owner)):
                views.append(entries.values())
                state |= {(place, kind, f"{name}: {key}"): _setting(value) for key, value in entries.items()}
            for hooks in (vars(owner)[name] for name in HOOKS if isinstance(owner, nn.Module)):
                views += [hooks.values()] if hooks else []
                empty += [] if hooks else [hooks]
                state |= {(place, kind, "the hook", number): id(hook) for number, hook in hooks.items()}
                if any(not _is_of_torch(hook) for hook in hooks.values()):
                    hooked = f"a hook on a module ({kind}) is called in each step"
        self._watch_parameters()
        outside = self._outside()
        labels = self._labels()
        state |= {label: frozen(value) for label, value in zip(labels, outside, strict=True)}
        for label, entries in _entries(dict(zip(labels, outside, strict=True))):
            views.append(entries.values())
            state |= {(*label[:-1], f"{label[-1]}: {key}"): _setting(value) for key, value in entries.items()}
        flags = self._flags()
        state |= {(id(tensor), "a parameter"): (tensor.requires_grad, tensor.dtype) for tensor in self.tensors}
        views.append([END])
        return Look(
            readers,
            owners,
            [*chain.from_iterable(map(call, readers, owners))],
            every,
            [*map(len, every)],
            views,
            [value for view in views for value in view],
            empty,
            flags,
            outside,
            state,
            hooked,
        )

    def _flags(self) -> list[Any]:
        """What can change of a tensor that stays the same object."""
        return [(t.requires_grad, t.dtype, t._backward_hooks, t._post_accumulate_grad_hooks) for t in self.tensors]

    def _watch_parameters(self) -> None:
        for module in self.modules:
            for tensor in module._parameters.values():
                if tensor is not None:
                    self.tensors.setdefault(tensor)

    def _hook_on_a_tensor(self) -> str | None:
        self._watch_parameters()
        found = any(tensor._backward_hooks or tensor._post_accumulate_grad_hooks for tensor in self.tensors)
        return "a hook on a parameter is called in each step" if found else None

    def _outside(self) -> list[Any]:
        """The values that functions take from their closures and globals, by the names in their code."""
        return [value for function in self.functions.values() for value in _outside(function)]

    def _labels(self) -> list[Any]:
        """The labels of what is outside, in its order."""
        labels: list[Any] = []
        for place, function in self.functions.items():
            labels += [(place, function.__name__, "the variable", name) for name in function.__code__.co_freevars]
            labels += [(place, function.__name__, "the global", name) for name in _names(function.__code__)]
        return labels

    def snapshot(self) -> Callable[[], None]:
        """What puts the Python side back as it is now: attributes, closures, globals, and what containers hold."""
        owners = [vars(owner) for owner in (*self.modules, *self.objects.values())]
        cells = [cell for function in self.functions.values() for cell in function.__closure__ or ()]
        spaces = [(function.__globals__, _names(function.__code__)) for function in self.functions.values()]
        attributes = [dict(owner) for owner in owners]
        contents = [_content(cell) for cell in cells]
        values = [{name: space[name] for name in names if name in space} for space, names in spaces]
        found = [*contents, *(value for part in (*attributes, *values) for value in part.values())]
        containers = [(value, value.copy()) for value in found if type(value) in CONTAINERS or isinstance(value, dict)]

        def restore() -> None:
            for owner, copy in zip(owners, attributes, strict=True):
                _refill(owner, copy)
            for cell, content in zip(cells, contents, strict=True):
                if content is not END:
                    cell.cell_contents = content
            for (space, _), copy in zip(spaces, values, strict=True):
                space.update(copy)
            for container, copy in containers:
                _refill(container, copy)

        return restore


def _refill(container: Any, copy: Any) -> None:
    """Give a container what its copy holds, where it holds any other object."""
    live, kept = ((*part, *part.values()) if isinstance(part, dict) else (*part,) for part in (container, copy))
    if len(live) != len(kept) or not all(map(is_, live, kept)):
        container.clear()
        (container.update if hasattr(container, "update") else container.extend)(copy)


def changed(before: dict[Any, Any], after: dict[Any, Any]) -> list[str]:
    """Say in words which labels of two states differ; a label that only one of them has is none of these."""
    return [_words(*label) for label in before if label in after and before[label] != after[label]]


def _words(_: int, owner: str, *what: Any) -> str:
    if len(what) == 2:
        return f"{what[0]} {what[1]!r} of {owner}"
    return f"the attribute {what[0]!r} of {owner}" if what else owner


def _parts(owner: Any) -> list[dict[str, Any]]:
    """The tensors and children of a module, which it keeps apart from its attributes."""
    if not isinstance(owner, nn.Module):
        return []
    return [where for where in (owner._parameters, owner._buffers, owner._modules) if where]


def _entries(values: dict[Any, Any]) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """The settings among some values, by the name of each: short dictionaries, data classes and namespaces."""
    for name, value in values.items():
        named = not isinstance(name, str) or not name.startswith("_")  # torch and Pyro keep their own in such names
        entries = value if type(value) is dict else vars(value) if _is_record(value) else None
        if named and entries is not None and len(entries) <= FEW:
            yield name, entries


def _setting(value: Any) -> Any:
    """A stand-in for a setting; an object of any other kind may be made anew in each step, as Pyro's guides do."""
    settled = is_plain(value) or isinstance(value, Tensor | nn.Module | FunctionType | MethodType)
    return frozen(value) if settled else type(value)


def _is_record(value: Any) -> bool:
    if isinstance(value, type):
        return _is_own(value.__module__)  # a class of a user's that holds settings
    return isinstance(value, SimpleNamespace | Namespace) or (is_dataclass(value) and hasattr(value, "__dict__"))


def _is_own(module: str | None) -> bool:
    """Whether code of a module is a user's: what torch, Pyro and this library hold does not change between steps."""
    return (module or "").partition(".")[0] not in ("torch", "pyro", "builtins", "ppl_vae", "numpy", "typing")


def _package(function: FunctionType) -> str:
    return (function.__module__ or "").partition(".")[0]


def _of_classes(owner: Any) -> dict[str, Any]:
    """The classes of an object that are a user's, by name: an attribute may be one of the class."""
    return {family.__name__: family for family in type(owner).__mro__ if _is_own(family.__module__)}


def _methods(owner: Any) -> list[Any]:
    return [value for family in _of_classes(owner).values() for value in vars(family).values()]


def _outside(function: FunctionType) -> list[Any]:
    """The values that a function takes from its closure and its globals, by the names in its code."""
    space = function.__globals__
    found = [_content(cell) for cell in function.__closure__ or ()]
    return found + [space.get(name) for name in _names(function.__code__)]


def _is_of_torch(hook: Callable[..., Any]) -> bool:
    """Whether a hook is one of torch's own, spectral normalisation say, which computes with tensors alone."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return module.startswith("torch.nn.utils.")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return END


@functools.cache
def _names(code: CodeType) -> tuple[str, ...]:
    """The globals that a function's code reads, and that of functions inside it."""
    read = [line.argval for line in dis.get_instructions(code) if line.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return tuple(dict.fromkeys([*read, *inner]))
