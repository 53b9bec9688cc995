"""An epoch's batches: in random order, in the model's units, on its device."""

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..data.arrays import stack_of
from ..snapshot import Snapshot
from ..streams import seeded
from ..variant import Variant, in_mode

__all__ = ["Batches", "norm_of_rows"]


class Batches:
    """Iterate once per epoch. Data that fit stay on the device; others come through a DataLoader.

    Args:
        variant: Whose units, dtype and device the batches take.
        data: [rows, *x_shape] in the data's units, or a Dataset of such items.
        batch_size: Rows per batch. The last may be short; where a batch norm cannot train on a last batch of one row,
            that row joins the batch before.
        draw: Whether values are probabilities, of which each batch is a fresh Bernoulli draw.

    Raises:
        ValueError: If a batch norm would have to train on one row, for there is one alone, or ``batch_size`` is 1.
    """

    def __init__(self, variant: Variant, data: Tensor | Dataset[Any], batch_size: int, *, draw: bool = False) -> None:
        self.variant, self.data, self.batch_size, self.draw = variant, data, batch_size, draw
        self.rows = len(data)  # type: ignore[arg-type]
        self.device = next(variant.model.parameters()).device
        self.resident = variant.in_model_units(data) if isinstance(data, Tensor) and self._fits(data) else None
        dataset: Dataset[Any] = TensorDataset(data) if isinstance(data, Tensor) else data
        pin = self.device.type == "cuda"
        self.loader = DataLoader(dataset, batch_size, shuffle=True, collate_fn=stack_of, pin_memory=pin)
        alone = self.rows == 1 or batch_size == 1
        norm = norm_of_rows(variant) if alone or self.rows % batch_size == 1 else None
        if norm is not None and alone:
            raise ValueError(
                f"{norm} takes statistics over rows and cannot train on one: rows of the training data {self.rows}, "
                f"batch_size {batch_size} (use 2 or more of both, or freeze it by requires_grad_(False))"
            )
        self.joins = norm is not None

    def _fits(self, data: Tensor) -> bool:
        if self.device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(self.device)
        return data.numel() * data.element_size() < free // 2

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size) - self.joins

    def first(self, rows: int = 8) -> Tensor:
        """The first training data as they stand, [rows, *x_shape] in the model's units."""
        count = min(rows, self.rows)
        some = self.data[:count] if isinstance(self.data, Tensor) else stack_of([self.data[i] for i in range(count)])
        y = self.variant.in_model_units(some)
        return torch.bernoulli(y) if self.draw else y

    def __iter__(self) -> Iterator[Tensor]:
        if self.resident is None:
            batches: Iterator[Tensor] = (
                self.variant.in_model_units(batch.to(self.device, non_blocking=True)) for batch in self.loader
            )
        else:
            order = torch.randperm(self.rows, device=self.device)
            batches = (self.resident[rows] for rows in order.split(self.batch_size))
        batches = _joined(batches) if self.joins else batches
        return (torch.bernoulli(batch) for batch in batches) if self.draw else batches


def _joined(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches, a last one of one row joined to the one before."""
    held = next(batches)
    for batch in batches:
        if len(batch) == 1:
            held = torch.cat([held, batch])
        else:
            yield held
            held = batch
    yield held


def norm_of_rows(variant: Variant) -> str | None:
    """The batch norm that would refuse to train on one row, by its class; None where there is none.

    It is tried, for a norm over pixels can train on one image, and a frozen one does not train.
    """
    like = next(variant.model.parameters())
    before = Snapshot(variant)
    try:
        with in_mode(variant, training=True), pyro.validation_enabled(False), seeded(0):
            norms = [module for half in variant[:2] for module in half.modules() if isinstance(module, _BatchNorm)]
            variant.guide.posterior(torch.zeros(1, *variant.model.x_shape).to(like))
            variant.model.x_given_z(torch.zeros(1, variant.z_dim).to(like))
    except Exception as error:  # noqa: BLE001 - what else may be wrong with a pair is said by preflight
        if "more than 1 value per channel" in str(error):
            return type(norms[0]).__name__ if norms else "a batch norm"
    finally:
        before.restore(variant)
    return None
