"""The batches of an epoch: in random order, in the model's units, and on its device."""

import math
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset

from ..data.arrays import finite_numbers
from ..data.items import stack_of
from ..snapshot import Snapshot
from ..streams import seeded
from ..variant import Variant, in_mode

__all__ = ["Batches", "norm_of_rows"]


class Batches:
    """The training data in batches [rows, *x_shape], in the model's units and in random order.

    Iterate over it once per epoch. A tensor stays on the device as a whole. A Dataset is read by a DataLoader.

    Args:
        variant: The pair, which gives the batches their units, dtype and device.
        data: The data [rows, *x_shape] in the model's units, or a Dataset of items in the data's units.
        batch_size: The number of rows per batch. The last batch may be short. If it has one row, and a batch norm
            cannot train on a single row, the row joins the batch before it.
        draw: Whether the values are probabilities. Each batch is then a fresh Bernoulli draw of its probabilities.

    Raises:
        ValueError: If a batch norm would have to train on a single row, because there is one row, or one per batch.
    """

    def __init__(self, variant: Variant, data: Tensor | Dataset[Any], batch_size: int, *, draw: bool = False) -> None:
        self.variant, self.data, self.batch_size, self.draw = variant, data, batch_size, draw
        self.rows = len(data)  # type: ignore[arg-type]
        self.joins = self._last_joins()

    def _last_joins(self) -> bool:
        """Whether a last batch of one row has to join the batch before it."""
        are_single = self.rows == 1 or self.batch_size == 1
        if not are_single and self.rows % self.batch_size != 1:
            return False
        norm = norm_of_rows(self.variant)
        if norm is not None and are_single:
            raise ValueError(
                f"{norm} computes statistics over rows and cannot train on a single one, and there are "
                f"{self.rows} training rows in batches of {self.batch_size}: use 2 or more of both, or freeze the norm "
                "by requires_grad_(False)"
            )
        return norm is not None

    def __len__(self) -> int:
        return math.ceil(self.rows / self.batch_size) - self.joins

    def first(self, rows: int = 8) -> Tensor:
        """The first training data in their stored order, [rows, *x_shape] in the model's units."""
        data, count = self.data, min(rows, self.rows)
        if isinstance(data, Tensor):
            y = data[:count]
        else:
            y = self.variant.in_model_units(stack_of([data[row] for row in range(count)]))
        return torch.bernoulli(y) if self.draw else y

    def __iter__(self) -> Iterator[Tensor]:
        batches = self._of_tensor(self.data) if isinstance(self.data, Tensor) else self._of_dataset(self.data)
        batches = _joined(batches) if self.joins else batches
        return (torch.bernoulli(batch) for batch in batches) if self.draw else batches

    def _of_tensor(self, y: Tensor) -> Iterator[Tensor]:
        order = torch.randperm(self.rows, device=y.device)
        return (y[rows] for rows in order.split(self.batch_size))

    def _of_dataset(self, dataset: Dataset[Any]) -> Iterator[Tensor]:
        device = next(self.variant.model.parameters()).device
        pin = device.type == "cuda"
        loader = DataLoader(dataset, self.batch_size, shuffle=True, collate_fn=_checked_stack, pin_memory=pin)
        return (self.variant.in_model_units(batch.to(device, non_blocking=True)) for batch in loader)


def _checked_stack(items: list[Any]) -> Tensor:
    """Items of a Dataset as rows, whose numbers are checked when they are read: nobody has seen them before."""
    return finite_numbers(stack_of(items), "a batch of the Dataset")


def _joined(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches, in which a batch of one row is joined to the batch before it."""
    previous = next(batches)
    for batch in batches:
        if len(batch) == 1:
            previous = torch.cat([previous, batch])
        else:
            yield previous
            previous = batch
    yield previous


def norm_of_rows(variant: Variant) -> str | None:
    """The class of the batch norm that would refuse to train on a single row. None if there is no such norm.

    The networks are tried on a single row, because the class alone does not decide: a norm over pixels can train on one
    image, and a frozen norm does not train.
    """
    like = next(variant.model.parameters())
    before = Snapshot(variant)
    try:
        with in_mode(variant, training=True), pyro.validation_enabled(False), seeded(0):
            norms = [module for half in variant[:2] for module in half.modules() if isinstance(module, _BatchNorm)]
            variant.guide.posterior(torch.zeros(1, *variant.model.x_shape).to(like))
            variant.model.x_given_z(torch.zeros(1, variant.z_dim).to(like))
    except Exception as error:  # noqa: BLE001 - preflight reports what else may be wrong with a pair
        if "more than 1 value per channel" in str(error):
            return type(norms[0]).__name__ if norms else "a batch norm"
    finally:
        before.restore(variant)
    return None
