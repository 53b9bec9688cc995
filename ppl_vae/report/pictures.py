"""Samples as files: numbers as .npy, images as a .png grid."""

import io
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..models.networks import is_image
from ..variant import Variant

__all__ = ["grid", "write_samples"]


def grid(y: Tensor, columns: int | None = None) -> Tensor:
    """Images [rows, channels, height, width] side by side: [channels, H, W], a pixel of white between them."""
    columns = columns or math.ceil(math.sqrt(len(y)))
    padded = torch.nn.functional.pad(y, (1, 1, 1, 1), value=1.0)
    blank = torch.ones(-len(y) % columns, *padded.shape[1:]).to(padded)
    tiles = torch.cat([padded, blank]).unflatten(0, (-1, columns))
    return tiles.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def write_samples(path: Path, variant: Variant, x: Tensor) -> None:
    """Write samples [rows, *x_shape], in the data's units, whole or not at all.

    Raises:
        ValueError: If a .png is wanted of data that are no images.
    """
    part = path.with_name(f".{path.name}.part")
    if path.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, x.cpu().numpy(), allow_pickle=False)
        part.write_bytes(buffer.getvalue())
    elif not is_image(variant.model.x_shape):
        raise ValueError(f"a .png shows images, and a datum has shape {list(variant.model.x_shape)}: name a .npy file")
    else:
        from matplotlib.image import imsave

        image = grid(variant.in_model_units(x).clamp(0, 1)).cpu()  # clamped, so that no value wraps around
        imsave(part, image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy(), format="png")
    os.replace(part, path)
