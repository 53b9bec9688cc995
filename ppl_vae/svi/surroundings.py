"""What a step reads besides its arguments, as far as Python can see it: attributes, tensors, hooks and variables.

A look at the surroundings gives a number. Two looks with the same number saw the same surroundings.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from itertools import chain
from operator import call, is_, itemgetter
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor, nn

from .python_values import CONTAINERS, frozen, is_plain
from .user_code import (
    UNBOUND,
    content,
    free_values,
    global_names,
    is_from_torch,
    is_own,
    neighbours,
    own_classes,
    own_methods,
)

__all__ = ["Surroundings", "changed"]

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
FEW = 100  # a dictionary with more entries holds data and no settings
# Modules whose own attributes do not change what they compute. Their tensors, children and hooks are looked at, and
# so are attributes that are added to them.
PASSIVE = (nn.Linear, nn.Sequential, nn.ModuleList, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity)
INTERNAL = vars(nn.Module()).keys() - {"training"}  # attributes in which torch keeps tensors, children and hooks
END = object()  # the last value of every look: without it, a new last entry would go unnoticed


class Look(NamedTuple):
    """What was seen at one time, arranged so that the next look is fast if nothing has changed.

    Attributes:
        readers: For each owner with attributes, a function that reads them from its dictionary.
        owners: These dictionaries.
        values: The values of the attributes, as objects.
        every: The dictionaries of all owners.
        sizes: The number of attributes in each of ``every``.
        views: Live views of the values of other dictionaries: tensors, children, settings and hooks.
        kept: The values in these views, as objects.
        hooks: The dictionaries of hooks that were empty.
        flags: For each watched tensor, whether it requires a gradient, its type and its hooks.
        outside: The values that functions read from their closures and globals.
        state: Hashable stand-ins of everything that was seen, by label.
        hooked: A description of a hook that Python has to call in each step. None if there is none.
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
    """Everything that a step reads besides its arguments, as far as Python can see it.

    It sees attributes of modules and of objects that own a model or a guide, modules and tensors that are replaced,
    ``requires_grad``, hooks, the closures and globals that a function reads, and the entries of dictionaries, data
    classes and namespaces found there. It does not see the items of lists, the inside of other objects, and files.

    Args:
        owners: Modules, functions, methods and objects that the step reads.
    """

    def __init__(self, owners: Iterable[Any] = ()) -> None:
        self.modules: dict[nn.Module, None] = {}
        self.objects: dict[int, Any] = {}
        self.functions: dict[int, FunctionType] = {}
        self.tensors: dict[Tensor, None] = {}
        self.last: Look | None = None
        self.numbered: tuple[Look | None, int] = None, -1
        self.known: dict[Any, int] = {}  # the number of each state
        self.changes: Counter[str] = Counter()  # in words, what differed between one state and the next new one
        self.alive: list[Any] = []  # objects that states know by id: they stay alive, so that no id is used again
        for owner in owners:
            self.add(owner)

    def add(self, owner: Any) -> None:
        """Watch a module and its children, a function, the owner of a method, or an object."""
        if isinstance(owner, nn.Module):
            for module in owner.modules():
                self.watch_module(module)
        elif isinstance(owner, MethodType):
            self.add(owner.__func__)
            self.add(owner.__self__)
        elif isinstance(owner, partial):
            for part in (owner.func, *owner.args, *owner.keywords.values()):
                self.add(part)
        elif isinstance(owner, FunctionType):
            self._watch_functions([owner])
            self.last = None
        elif hasattr(owner, "__dict__") and not isinstance(owner, type | ModuleType | Tensor):
            self.objects[id(owner)] = owner
            self._watch_functions(own_methods(owner))
            self.last = None

    def watch_module(self, module: nn.Module, *_: Any) -> None:
        """Watch one module without its children. The signature is that of a forward hook."""
        if module not in self.modules:
            self.modules[module] = None
            self.last = None
            self._watch_functions(own_methods(module))

    def watch_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Watch whether tensors require a gradient and have hooks."""
        for tensor in tensors:
            if tensor not in self.tensors:
                self.tensors[tensor] = None
                self.last = None

    @contextmanager
    def watching_calls(self) -> Iterator[None]:
        """Watch each module that is called inside the block. A model that is a function does not list its modules."""
        with nn.modules.module.register_module_forward_pre_hook(self.watch_module):
            yield

    def _watch_functions(self, functions: Iterable[Any]) -> None:
        """Watch the user's functions among some objects, and the functions of the same package that these read."""
        for function in functions:
            is_new = isinstance(function, FunctionType) and id(function) not in self.functions
            if is_new and is_own(function.__module__):
                self.functions[id(function)] = function
                self._watch_functions(neighbours(function))

    @property
    def has_foreign_parts(self) -> bool:
        """Whether the user wrote the class of a module or an object. This library knows when its own parts change."""
        return any(is_own(type(owner).__module__) for owner in self._owners())

    def look(self) -> Look:
        """Look at the surroundings. The last look is returned if nothing has changed since."""
        if self.last is None or not self._unchanged(self.last):
            self.last = self._look()
        return self.last

    @property
    def number(self) -> int:
        """The number of the state that the last look shows. A state that is new gets the next number."""
        before, number = self.numbered
        if self.last is not None and self.last is not before:
            state = tuple(self.last.state.items())
            if state not in self.known:
                self.known[state] = len(self.known)
                self.alive += [self.last.values, self.last.kept, self.last.outside]
                self.changes.update([] if before is None else changed(before.state, self.last.state))
            number = self.known[state]
            self.numbered = self.last, number
        return number

    def _unchanged(self, last: Look) -> bool:
        """Whether a new look would see the same. Objects are compared by identity, which is fast."""
        try:
            attributes = chain.from_iterable(map(call, last.readers, last.owners))
            same_attributes = all(map(is_, attributes, last.values))
        except KeyError:  # an attribute was deleted
            return False
        return (
            same_attributes
            and [*map(len, last.every)] == last.sizes
            and all(map(is_, chain.from_iterable(last.views), last.kept))
            and not any(last.hooks)
            and self._flags() == last.flags
            and all(map(is_, self._outside(), last.outside))
        )

    def _look(self) -> Look:
        self._watch_parameters()
        owners = self._owners()
        readers: list[Callable[[Any], Any]] = []
        read: list[dict[str, Any]] = []
        views: list[Iterable[Any]] = []
        state: dict[Any, Any] = {}
        for owner in owners:
            attributes, names = vars(owner), _attribute_names(owner)
            place = id(owner), type(owner).__name__
            if names and type(owner) not in PASSIVE:
                readers.append(itemgetter(*names, *names[:1]))  # with a single name it would not return a tuple
                read.append(attributes)
            state |= {(*place, name): frozen(attributes[name]) for name in names}
            for view, stand_ins in _contents(owner):
                views.append(view)
                state |= {(*place, *label): stand_in for label, stand_in in stand_ins.items()}
        variables = dict(zip(self._labels(), self._outside(), strict=True))
        state |= {label: frozen(value) for label, value in variables.items()}
        for (*where, name), entries in _entries(variables):
            views.append(entries.values())
            state |= {(*where, f"{name}: {key}"): _setting(value) for key, value in entries.items()}
        state |= {(id(tensor), "a parameter"): (tensor.requires_grad, tensor.dtype) for tensor in self.tensors}
        views.append([END])
        return Look(
            readers=readers,
            owners=read,
            values=[*chain.from_iterable(map(call, readers, read))],
            every=[vars(owner) for owner in owners],
            sizes=[len(vars(owner)) for owner in owners],
            views=views,
            kept=[*chain.from_iterable(views)],
            hooks=[hooks for owner in owners for hooks in _hooks(owner) if not hooks],
            flags=self._flags(),
            outside=[*variables.values()],
            state=state,
            hooked=self._hooked(),
        )

    def _owners(self) -> list[Any]:
        return [*self.modules, *self.objects.values()]

    def _watch_parameters(self) -> None:
        for module in self.modules:
            for tensor in module._parameters.values():
                if tensor is not None:
                    self.tensors.setdefault(tensor)

    def _flags(self) -> list[Any]:
        """The properties of each watched tensor that can change while it stays the same object."""
        return [(t.requires_grad, t.dtype, t._backward_hooks, t._post_accumulate_grad_hooks) for t in self.tensors]

    def _hooked(self) -> str | None:
        """A description of a hook that Python has to call in each step. None if there is none."""
        for owner in self._owners():
            hooks = [hook for table in _hooks(owner) for hook in table.values()]
            if not all(map(is_from_torch, hooks)):
                return f"a hook on a module ({type(owner).__name__}) is called in each step"
        if any(tensor._backward_hooks or tensor._post_accumulate_grad_hooks for tensor in self.tensors):
            return "a hook on a parameter is called in each step"
        return None

    def _outside(self) -> list[Any]:
        """The values that functions read from their closures and globals."""
        return [value for function in self.functions.values() for value in free_values(function)]

    def _labels(self) -> list[Any]:
        """A label for each value that ``_outside`` returns, in the same order."""
        labels: list[Any] = []
        for place, function in self.functions.items():
            name, code = function.__name__, function.__code__
            labels += [(place, name, "the variable", variable) for variable in code.co_freevars]
            labels += [(place, name, "the global", variable) for variable in global_names(code)]
        return labels

    def snapshot(self) -> Callable[[], None]:
        """Copy the Python side, and return a function that puts it back.

        The copy holds attributes, closures, globals, and the content of the containers among these.
        """
        functions = self.functions.values()
        attributes = [(vars(owner), dict(vars(owner))) for owner in self._owners()]
        cells = [(cell, content(cell)) for function in functions for cell in function.__closure__ or ()]
        variables = [(function.__globals__, _read_globals(function)) for function in functions]
        values = [value for _, value in cells]
        values += [value for _, kept in (*attributes, *variables) for value in kept.values()]
        containers = [(value, value.copy()) for value in values if type(value) in CONTAINERS or isinstance(value, dict)]

        def restore() -> None:
            for owner, kept in attributes:
                _refill(owner, kept)
            for cell, value in cells:
                if value is not UNBOUND:
                    cell.cell_contents = value
            for space, kept in variables:
                space.update(kept)
            for container, kept in containers:
                _refill(container, kept)

        return restore


def _attribute_names(owner: Any) -> list[str]:
    """The attributes of an owner, without those in which torch keeps the parts of a module."""
    return [name for name in vars(owner) if name not in INTERNAL or not isinstance(owner, nn.Module)]


def _contents(owner: Any) -> Iterator[tuple[Iterable[Any], dict[tuple[Any, ...], Any]]]:
    """A live view of each dictionary of an owner, with the stand-ins of its values by label."""
    for table in _parts(owner):
        yield table.values(), {(name,): frozen(value) for name, value in table.items()}
    for name, entries in _entries(vars(owner) | own_classes(owner)):
        yield entries.values(), {(f"{name}: {key}",): _setting(value) for key, value in entries.items()}
    for hooks in filter(None, _hooks(owner)):
        yield hooks.values(), {("the hook", number): id(hook) for number, hook in hooks.items()}


def _parts(owner: Any) -> list[dict[str, Any]]:
    """The tensors and children of a module, which are not among its attributes."""
    if not isinstance(owner, nn.Module):
        return []
    return [table for table in (owner._parameters, owner._buffers, owner._modules) if table]


def _hooks(owner: Any) -> list[dict[Any, Any]]:
    """The dictionaries of hooks of a module."""
    return [vars(owner)[name] for name in HOOKS] if isinstance(owner, nn.Module) else []


def _entries(values: dict[Any, Any]) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """The settings among some values, with their names: short dictionaries, data classes and namespaces."""
    for name, value in values.items():
        internal = isinstance(name, str) and name.startswith("_")  # torch and Pyro keep their own state there
        if type(value) is dict:
            entries = value
        elif _is_record(value):
            entries = vars(value)
        else:
            continue
        if not internal and len(entries) <= FEW:
            yield name, entries


def _is_record(value: Any) -> bool:
    """Whether an object holds settings as attributes: a data class, a namespace, or a class that the user wrote."""
    if isinstance(value, type):
        return is_own(value.__module__)
    return isinstance(value, SimpleNamespace | Namespace) or (is_dataclass(value) and hasattr(value, "__dict__"))


def _setting(value: Any) -> Any:
    """A stand-in for one setting.

    Objects of other types are known by their type alone, because Pyro's guides make some of them anew in each step.
    """
    settled = is_plain(value) or isinstance(value, Tensor | nn.Module | FunctionType | MethodType)
    return frozen(value) if settled else type(value)


def _read_globals(function: FunctionType) -> dict[str, Any]:
    """The globals that a function reads, by name."""
    space = function.__globals__
    return {name: space[name] for name in global_names(function.__code__) if name in space}


def _refill(container: Any, kept: Any) -> None:
    """Put the content of a copy back into a container, unless the container still holds the same objects."""
    ours, theirs = _objects(container), _objects(kept)
    if len(ours) != len(theirs) or not all(map(is_, ours, theirs)):
        container.clear()
        fill = container.update if hasattr(container, "update") else container.extend
        fill(kept)


def _objects(container: Any) -> list[Any]:
    """The items of a container, or the keys and values of a dictionary."""
    return [*container, *container.values()] if isinstance(container, dict) else [*container]


def changed(before: dict[Any, Any], after: dict[Any, Any]) -> list[str]:
    """The labels whose values differ between two states, in words. Labels that only one state has are left out."""
    return [_words(*label) for label in before if label in after and before[label] != after[label]]


def _words(_: int, owner: str, *parts: Any) -> str:
    """A label in words. Its last parts are a kind and a name, or the name of an attribute, or nothing."""
    if len(parts) == 2:
        return f"{parts[0]} {parts[1]!r} of {owner}"
    return f"the attribute {parts[0]!r} of {owner}" if parts else owner
