"""Shorten a recorded graph without changing a bit of what it computes: aliases, constants, repetitions, dead code."""

from collections.abc import Iterator
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from .capture import Recording

__all__ = ["clean"]

aten = torch.ops.aten

_FACTORIES = {
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
_NEUTRAL = {  # operation with a second operand that makes it do nothing
    aten.add.Tensor: 0,
    aten.sub.Tensor: 0,
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
    aten.div.Tensor: 1,
    aten.pow.Tensor_Scalar: 1,
}


def clean(recording: Recording) -> tuple[dict[Any, Tensor], Graph]:
    """Constants by name and the graph, from inputs and held tensors to outputs, of a recording; it is used up.

    A random draw stays even where nobody reads it, so that the stream goes on as it did; so does what is written.
    """
    graph, known = recording.graph, dict[Node, Tensor]()
    moving = _moving(graph)
    seen: dict[Any, Node] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            known[node] = recording.constants[node.target]
        if node.op != "call_function" or _acts(node):
            continue
        other = _alias(node)
        if other is None and moving.isdisjoint([node, *node.all_input_nodes]):
            if _fold(node, known):
                continue
            other = _neutral(node, known) or seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if other is not None and other is not node:
            node.replace_all_uses_with(other)
    constants = _attributes(graph, known)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output") or _acts(node))
    return {node.target: constants[node.target] for node in graph.nodes if node.op == "get_attr"}, graph


def _shared(node: Node) -> Iterator[tuple[Node, bool]]:
    """Arguments whose storage the result of a node shares, and whether the node writes it."""
    if node.target is getitem:
        yield node.args[0], False  # type: ignore[misc]
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema else ()):
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and isinstance(value, Node):
            yield value, argument.alias_info.is_write


def _acts(node: Node) -> bool:
    """Whether a node draws or writes: it stays, in its place."""
    drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return drawn or any(writes for _, writes in _shared(node))


def _moving(graph: Graph) -> set[Node]:
    """Nodes whose storage is written at some time: what was read from them before is not what is read after."""
    owner: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        while node in owner:
            node = owner[node]
        return node

    written = set()
    for node in graph.nodes:
        for shared, writes in _shared(node):
            if root(shared) is not root(node):
                owner[root(node)] = root(shared)
            written |= {shared} if writes else set()
    roots = {root(node) for node in written}
    return {node for node in graph.nodes if root(node) in roots}


def _alias(node: Node) -> Node | None:
    """The node of which this one is another name: same storage, same shape."""
    first = node.args[0] if node.args else None
    if not isinstance(first, Node):
        return None
    if node.target is aten.t.default and first.target is aten.t.default:
        return first.args[0]  # type: ignore[return-value]
    views = (aten.alias, aten.detach, aten.expand, aten.view, aten._unsafe_view)
    same = "like" in first.meta and first.meta["like"] == node.meta.get("like")
    return first if same and node.target in [view.default for view in views] else None


def _value(node: Node, known: dict[Node, Tensor]) -> Tensor:
    """What stands for a node where a constant is computed: of others, only shape and type matter."""
    if node in known:
        return known[node]
    shape, _, dtype, device = node.meta["like"]
    return torch.empty((), dtype=dtype, device=device).expand(shape)


def _fold(node: Node, known: dict[Node, Tensor]) -> bool:
    """Compute a node that depends on constants alone; one number stands for a uniform tensor."""
    inputs = node.all_input_nodes
    if "like" not in node.meta or not (node.target in _FACTORIES or (inputs and all(i in known for i in inputs))):
        return False
    args, kwargs = map_arg((node.args, node.kwargs), lambda i: _value(i, known))
    value = node.target(*args, **kwargs)  # type: ignore[operator]
    uniform = value.numel() > 1 and bool((value == value.flatten()[0]).all())
    known[node] = value.flatten()[0].clone().expand(value.shape) if uniform else value
    return True


def _neutral(node: Node, known: dict[Node, Tensor]) -> Node | None:
    """The first operand where the second does nothing; a uniform second operand becomes a number."""
    if node.target not in _NEUTRAL or node.kwargs:
        return None
    first, second = node.args
    if first in known and node.target in (aten.add.Tensor, aten.mul.Tensor):
        first, second = second, first
    if isinstance(second, Node) and second in known and known[second].dtype == node.meta["like"][2]:
        value = known[second]
        second = value.flatten()[0].item() if value.numel() and not any(value.stride()) else second
    if not isinstance(first, Node) or first.meta.get("like") != node.meta["like"]:
        return None
    node.args = (first, second)
    return first if not isinstance(second, Node) and second == _NEUTRAL[node.target] else None


def _attributes(graph: Graph, known: dict[Node, Tensor]) -> dict[Any, Tensor]:
    """Let those nodes that are not known read attributes, which are returned by name."""
    constants = {}
    for index, (node, value) in enumerate(known.items()):
        if any(user not in known for user in node.users):
            constants[f"folded_{index}"] = value
            with graph.inserting_before(node):
                attribute = graph.get_attr(f"folded_{index}")
            node.replace_all_uses_with(attribute, delete_user_cb=lambda user: user not in known)
    return constants
