"""The record of a contract, and the decorator that registers a function as a contract."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..variant import Variant

__all__ = ["Contract", "Trial", "contract"]

Question = Callable[..., str | None]


class Contract(NamedTuple):
    """A condition that a pair has to meet.

    Attributes:
        name: The name at the start of each line about it.
        question: A function of a ``Pass`` or of a ``Trial``. It returns None if the contract holds, and otherwise a
            text with the mistake and a remedy.
        remedy: The remedy to report if the function raises an error, because a user's part may raise anything.
        gate: Whether ``check`` stops after this contract if any contract has failed so far.
        let_through: Whether ``fit`` trains a pair that breaks this contract.
    """

    name: str
    question: Question
    remedy: str
    gate: bool
    let_through: bool


class Trial(NamedTuple):
    """A copy of a pair, and the data on which a contract tries it.

    Attributes:
        variant: The copy. It belongs to this trial alone, so a contract may train it.
        y: The data [rows, *x_shape], in the model's units.
        x: The same data, in their own units.
    """

    variant: Variant
    y: Tensor
    x: Tensor


def contract(
    group: list[Contract], name: str, *, remedy: str, gate: bool = False, let_through: bool = False
) -> Callable[[Question], Question]:
    """A decorator that adds a function to the end of a group of contracts, with the attributes of ``Contract``."""

    def enter(question: Question) -> Question:
        group.append(Contract(name, question, remedy, gate, let_through))
        return question

    return enter
