"""Prove that a graph computes what the recorded function computes."""

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..streams import set_stream_states, stream_states
from .capture import Function, NotStatic, Recording, equal, first_line, put_back

__all__ = ["agree", "prove", "same_streams"]


def prove(one: Recording, two: Recording, build: Callable[[Recording], Function], tolerance: float = 0.0) -> Function:
    """Build a function from the second of two recordings, and prove that it repeats the second call.

    The two recordings have to be the same graph. The function that is built has to repeat the outputs of the second
    call, the tensors that this call wrote, and its random draws. All tensors and random streams are left as the second
    call left them.

    Args:
        one, two: Recordings of two calls, with different data, noise and weights.
        build: A function that takes a recording, and returns a function of its inputs and held tensors.
        tolerance: The relative error that is allowed, in the first output, in the norm of the other outputs, and in
            the norm of the written tensors; zero asks for equality to the last bit.

    Returns:
        A function from new inputs to outputs, which reads and writes the held tensors.

    Raises:
        NotStatic: If the proof fails. The message says why.
    """
    after = [tensor.detach().clone() for tensor in two.tensors]
    try:
        foreign = _moved_stream(two.start[0], two.end[0])
        if foreign is not None:
            raise NotStatic(f"the step draws from {foreign} random stream, which a graph cannot do: draw with torch")
        _compare_graphs(one, two)
        run = build(two)
        two.rewind()
        with torch.no_grad():
            outputs = run(*two.inputs, *two.held)
        if not same_streams(stream_states(), two.end) or not _repeats(two, outputs, after, tolerance):
            raise NotStatic("the graph does not repeat the recorded step")
    except NotStatic:
        raise
    except Exception as error:  # a compiler raises errors of many types, and the recorded call itself has succeeded
        raise NotStatic(first_line(error)) from error
    finally:
        put_back(after, two.tensors)
        set_stream_states(two.end)
    held = two.held
    return lambda *inputs: run(*inputs, *held)


def _compare_graphs(one: Recording, two: Recording) -> None:
    """Raise ``NotStatic`` unless two recordings are the same computation on different tensors."""
    for first, second in zip_longest(one.graph.nodes, two.graph.nodes):
        a, b = (None if node is None else f"{node.target}{node.args}{node.kwargs or ''}" for node in (first, second))
        if a != b:
            raise NotStatic(f"two recorded steps differ: the first has {a} where the second has {b}")
    for name, value in one.constants.items():
        other = two.constants[name]
        if not equal(value, other):
            values = f"{value.tolist()} in the first and {other.tolist()} in the second"
            raise NotStatic(f"two recorded steps differ: a constant is {values}")
    if any(first is not second for first, second in zip_longest(one.held, two.held)):
        raise NotStatic("a tensor was replaced by another object between two recorded steps: write it in place")


def same_streams(ours: Any, theirs: Any) -> bool:
    """Whether all random streams have the same state: those of torch on every device, of Python and of NumPy."""
    (host, devices), (other_host, other_devices) = ours, theirs
    same_elsewhere = _moved_stream(host, other_host) is None
    return same_elsewhere and agree([host["torch"], *devices], [other_host["torch"], *other_devices])


def _moved_stream(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """The random stream outside torch that has moved: "Python's" or "NumPy's". None if neither has moved."""
    if before["random"] != after["random"]:
        return "Python's"
    return None if all(map(np.array_equal, before["numpy"], after["numpy"])) else "NumPy's"


def agree(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 0.0) -> bool:
    """Whether two lists of tensors agree.

    With tolerance zero they have to be equal to the last bit, where NaN equals NaN. Otherwise the norm of the error
    over all floating-point tensors is compared with ``tolerance`` times the norm of ``theirs``; integers have to be
    equal.
    """
    if tolerance == 0.0:
        return all(equal(a, b) for a, b in zip(ours, theirs, strict=True))
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True)]
    floats = [(a, b) for a, b in pairs if a.is_floating_point()]
    counts = [(a, b) for a, b in pairs if not a.is_floating_point()]
    error = sum(float((a - b).norm()) ** 2 for a, b in floats)
    bound = tolerance**2 * sum(float(b.norm()) ** 2 for _, b in floats)
    return all(equal(a, b) for a, b in counts) and (error <= bound or math.isnan(bound))


def _repeats(recording: Recording, outputs: Sequence[Tensor], after: Sequence[Tensor], tolerance: float) -> bool:
    """Whether a second run has repeated the recorded call.

    The loss, the gradients and the written tensors are compared separately. A tensor that the recorded call did not
    write has to be unchanged to the last bit.

    Args:
        recording: The recorded call.
        outputs: The outputs of the second run.
        after: The values of ``recording.tensors`` after the recorded call.
        tolerance: As for ``agree``.
    """
    triples = list(zip(recording.tensors, after, recording.before, strict=True))
    written = [(tensor, value) for tensor, value, before in triples if not equal(value, before)]
    kept = [(tensor, value) for tensor, value, before in triples if equal(value, before)]
    return (
        agree(outputs[:1], recording.outputs[:1], tolerance)
        and agree(outputs[1:], recording.outputs[1:], tolerance)
        and agree([tensor for tensor, _ in written], [value for _, value in written], tolerance)
        and agree([tensor for tensor, _ in kept], [value for _, value in kept])
    )
