"""``check`` tests all contracts of a pair, and ``preflight`` tests those that need only one training pass."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pyro
import torch
from torch import Tensor

from ..data.data_set import tensor_of
from ..snapshot import Snapshot
from ..streams import seeded
from ..variant import Variant, in_mode
from .objective import LOSS, WEIGHING
from .ownership import OWNERSHIP
from .reach import REACH
from .registry import Contract, Trial
from .shapes import SHAPES
from .sites import SITES
from .training_pass import Pass, one_pass
from .trials import TRIALS
from .widths import WIDTHS

__all__ = ["check", "preflight"]

ON_A_PASS = [*SITES, *OWNERSHIP, *REACH, *WIDTHS, *WEIGHING]  # their functions take a Pass, and all others take a Trial
CONTRACTS = [*SHAPES, *ON_A_PASS, *LOSS, *TRIALS]
ROWS = 8  # the number of data that preflight uses


def check(variant: Variant, x: Any) -> list[str]:
    """Test every contract that a pair has to keep for the numbers of this library to be right.

    Args:
        variant: The pair. The tests use copies of it, so the pair and the random streams are left as they were.
        x: At least 4 data [rows, *x_shape], in their own units.

    Returns:
        One line per broken contract, with its name, the mistake and the remedy. The list is empty if all hold. It
        ends early if a failure makes the later contracts meaningless.

    Raises:
        ValueError: If x is empty, not numeric, holds NaN or infinities, or has fewer than 4 rows.

    Example:
        >>> import torch
        >>> from ppl_vae import VARIANTS, check
        >>> check(VARIANTS["sigma_vae"](x_shape=(6,), z_dim=2), torch.randn(8, 6))
        []
    """
    x = tensor_of(x)
    if len(x) < 4:
        raise ValueError(f"check needs at least 4 data to split, got {len(x)}")
    try:
        y = variant.in_model_units(x)
    except Exception as error:  # noqa: BLE001 - a model of the user's own may raise anything
        return [f"data: {_raised(error, 'give x as [rows, *x_shape] to a model with at least one parameter')}"]

    @cache
    def training_pass() -> Pass:
        return one_pass(copy.deepcopy(variant), y)

    def trial() -> Trial:
        return Trial(copy.deepcopy(variant), y, x)

    failures = []
    for contract in CONTRACTS:
        failure = _failure(contract, training_pass if contract in ON_A_PASS else trial)
        if failure is not None:
            failures.append(f"{contract.name}: {failure}")
        if failures and contract.gate:
            break
    return failures


def preflight(variant: Variant, y: Tensor) -> None:
    """Refuse a pair that breaks a contract on a training pass. The test takes milliseconds and restores the pair.

    Args:
        variant: The pair.
        y: Training data [rows, *x_shape], in the model's units. The first few are used.

    Raises:
        ValueError: If a contract is broken. The message is the line that ``check`` would return about it. Contracts
            with ``let_through`` are not tested: a scale may stand at its floor because an earlier training ended there,
            and a decoder may be meant to reach only a part of x.
    """
    before = Snapshot(variant)
    try:
        with in_mode(variant, training=True), torch.enable_grad(), seeded(0):
            run = one_pass(variant, y[:ROWS])
            for contract in ON_A_PASS:
                failure = None if contract.let_through else contract.question(run)
                if failure is not None:
                    raise ValueError(f"{contract.name}: {failure}")
    finally:
        before.restore(variant)


def _failure(contract: Contract, subject: Callable[[], Pass | Trial]) -> str | None:
    """The failure that a contract reports, or None. An error that the contract raises is a failure too."""
    with _isolated():
        try:
            return contract.question(subject())
        except Exception as error:  # noqa: BLE001 - a part of the user's own may raise anything
            return _raised(error, contract.remedy)


@contextmanager
def _isolated() -> Iterator[None]:
    """Give one contract random streams, a parameter store and settings of its own. A warning counts as an error."""
    store = pyro.get_param_store().scope()
    with seeded(0), torch.enable_grad(), warnings.catch_warnings(), pyro.validation_enabled(True), store:
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)  # NaN, see "loss"
        yield


def _raised(error: Exception, remedy: str) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line} ({remedy})"
