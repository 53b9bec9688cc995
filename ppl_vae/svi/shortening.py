"""Shorten a recorded graph without changing a bit of its result.

Aliases, constants, repeated operations and operations whose results are never read are taken out.
"""

from collections.abc import Iterator
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from .capture import Recording

__all__ = ["shorten"]

aten = torch.ops.aten

FACTORIES = {  # operations that make a tensor from numbers
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.new_full.default,
    aten.ones.default,
    aten.zeros.default,
    aten.full.default,
    aten.arange.default,
    aten.scalar_tensor.default,
}
NEUTRAL = {  # the second operand with which an operation returns its first operand
    aten.add.Tensor: 0,
    aten.sub.Tensor: 0,
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
    aten.div.Tensor: 1,
    aten.pow.Tensor_Scalar: 1,
}
VIEWS = [view.default for view in (aten.alias, aten.detach, aten.expand, aten.view, aten._unsafe_view)]


def shorten(recording: Recording) -> tuple[dict[Any, Tensor], Graph]:
    """The constants, by name, and the shortened graph of a recording.

    The graph of the recording itself is changed. Random draws stay even if they are never read, so that the random
    streams move as before. Operations that write a tensor stay too.
    """
    graph = recording.graph
    written = _written_at_some_time(graph)
    known: dict[Node, Tensor] = {}  # nodes whose value is a constant
    seen: dict[Any, Node] = {}  # the first node of each operation and its arguments
    for node in graph.nodes:
        if node.op == "get_attr":
            known[node] = recording.constants[node.target]
        if node.op != "call_function" or _has_effect(node):
            continue
        other = _same_tensor(node)
        if other is None and written.isdisjoint([node, *node.all_input_nodes]):
            if _fold(node, known):
                continue
            other = _operand_left(node, known)
            if other is None:
                operation = node.target, repr(node.args), repr(node.kwargs)
                other = seen.setdefault(operation, node)
        if other is not None and other is not node:
            node.replace_all_uses_with(other)
    constants = _attributes(graph, known)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output") or _has_effect(node))
    used = [node.target for node in graph.nodes if node.op == "get_attr"]
    return {name: constants[name] for name in used}, graph


def _shared(node: Node) -> Iterator[tuple[Node, bool]]:
    """The arguments that share memory with the result of a node, each with a flag: whether the node writes it."""
    if node.target is getitem:
        yield node.args[0], False  # type: ignore[misc]
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema else ()):
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and isinstance(value, Node):
            yield value, argument.alias_info.is_write


def _has_effect(node: Node) -> bool:
    """Whether a node draws random numbers or writes a tensor, so that it has to stay in its place."""
    draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return draws or any(writes for _, writes in _shared(node))


def _written_at_some_time(graph: Graph) -> set[Node]:
    """The nodes whose memory is written somewhere in the graph: two reads of such a node may differ."""
    owner: dict[Node, Node] = {}  # a node with shared memory -> the node that owns this memory

    def root(node: Node) -> Node:
        while node in owner:
            node = owner[node]
        return node

    written = set()
    for node in graph.nodes:
        for shared, writes in _shared(node):
            if root(shared) is not root(node):
                owner[root(node)] = root(shared)
            if writes:
                written.add(shared)
    roots = {root(node) for node in written}
    return {node for node in graph.nodes if root(node) in roots}


def _same_tensor(node: Node) -> Node | None:
    """An earlier node that is the same tensor, with the same memory and shape. None if there is none."""
    first = node.args[0] if node.args else None
    if not isinstance(first, Node):
        return None
    if node.target is aten.t.default and first.target is aten.t.default:
        return first.args[0]  # type: ignore[return-value]
    same_layout = "like" in first.meta and first.meta["like"] == node.meta.get("like")
    return first if same_layout and node.target in VIEWS else None


def _fold(node: Node, known: dict[Node, Tensor]) -> bool:
    """Compute a node that depends on constants alone, and say whether that was possible.

    A tensor whose elements are all equal is kept as one element, expanded to the shape of the tensor.
    """
    inputs = node.all_input_nodes
    depends_on_constants = bool(inputs) and all(source in known for source in inputs)
    if "like" not in node.meta or not (node.target in FACTORIES or depends_on_constants):
        return False
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: _value(source, known))
    value = node.target(*args, **kwargs)  # type: ignore[operator]
    uniform = value.numel() > 1 and bool((value == value.flatten()[0]).all())
    known[node] = value.flatten()[0].clone().expand(value.shape) if uniform else value
    return True


def _value(node: Node, known: dict[Node, Tensor]) -> Tensor:
    """The value of a constant, or a tensor of the right shape and type for a node of which only these are read."""
    if node in known:
        return known[node]
    shape, _, dtype, device = node.meta["like"]
    return torch.empty((), dtype=dtype, device=device).expand(shape)


def _operand_left(node: Node, known: dict[Node, Tensor]) -> Node | None:
    """The first operand of a node if the second does nothing, as in ``x * 1``. None otherwise.

    A second operand whose elements are all equal becomes a number in the graph.
    """
    if node.target not in NEUTRAL or node.kwargs:
        return None
    layout = node.meta["like"]
    dtype = layout[2]
    first, second = node.args
    if first in known and node.target in (aten.add.Tensor, aten.mul.Tensor):
        first, second = second, first
    if isinstance(second, Node) and second in known and known[second].dtype == dtype:
        value = known[second]
        expanded_from_one = value.numel() and not any(value.stride())
        second = value.flatten()[0].item() if expanded_from_one else second
    if not isinstance(first, Node) or first.meta.get("like") != layout:
        return None
    node.args = (first, second)
    does_nothing = not isinstance(second, Node) and second == NEUTRAL[node.target]
    return first if does_nothing else None


def _attributes(graph: Graph, known: dict[Node, Tensor]) -> dict[Any, Tensor]:
    """The constants that other nodes read, by name. These nodes read them as attributes from now on."""
    constants = {}
    for index, (node, value) in enumerate(known.items()):
        if any(user not in known for user in node.users):
            name = f"folded_{index}"
            constants[name] = value
            with graph.inserting_before(node):
                attribute = graph.get_attr(name)
            node.replace_all_uses_with(attribute, delete_user_cb=lambda user: user not in known)
    return constants
