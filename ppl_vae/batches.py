"""An epoch's batches: in random order, in the model's units, on its device."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from .data import stack_of
from .variant import Variant

__all__ = ["Batches"]


class Batches:
    """Iterate once an epoch. Data that fit stay on the device; others come through a DataLoader.

    Args:
        variant: Whose units, dtype and device the batches take.
        data: [rows, *x_shape] in the data's units, or a Dataset of such items.
        batch_size: Rows a batch; the last one may be short.
        draw: Whether values are probabilities, of which each batch is a fresh Bernoulli draw.
    """

    def __init__(self, variant: Variant, data: Tensor | Dataset[Any], batch_size: int, *, draw: bool = False) -> None:
        self.variant, self.batch_size, self.draw = variant, batch_size, draw
        self.rows = len(data)  # type: ignore[arg-type]
        self.device = next(variant.model.parameters()).device
        self.resident = variant.in_model_units(data) if isinstance(data, Tensor) and self._fits(data) else None
        dataset: Dataset[Any] = TensorDataset(data) if isinstance(data, Tensor) else data
        pin = self.device.type == "cuda"
        self.loader = DataLoader(dataset, batch_size, shuffle=True, collate_fn=stack_of, pin_memory=pin)

    def _fits(self, data: Tensor) -> bool:
        if self.device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(self.device)
        return data.numel() * data.element_size() < free // 2

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.resident is None:
            batches = (self.variant.in_model_units(batch.to(self.device, non_blocking=True)) for batch in self.loader)
        else:
            order = torch.randperm(self.rows, device=self.device)
            batches = (self.resident[rows] for rows in order.split(self.batch_size))
        return (torch.bernoulli(batch) for batch in batches) if self.draw else batches
