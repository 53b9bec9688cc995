"""What a contract is, and the decorator that makes a function one."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..variant import Variant

__all__ = ["Contract", "Trial", "contract"]

Question = Callable[..., str | None]


class Contract(NamedTuple):
    """One thing that has to hold for a pair.

    Attributes:
        name: The name at the start of each line about it.
        question: A function of a ``Pass`` or of a ``Trial``. It returns None where the contract holds, and otherwise
            says what is wrong and what to do.
        remedy: What to do where the function raises an error, since a user's part may raise anything.
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
    """Add a function to a group of contracts, in the order of the page; see ``Contract`` for the arguments."""

    def enter(question: Question) -> Question:
        group.append(Contract(name, question, remedy, gate, let_through))
        return question

    return enter
