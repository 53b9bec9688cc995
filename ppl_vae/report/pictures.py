"""Images in grids, for a page or a file, and samples as files."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..coding import draw_data, mean_codes, mean_data
from ..data.data_set import Data
from ..drawing import uri
from ..evaluation.interpolation import interpolate
from ..files import whole_file
from ..models.networks import is_image
from ..studies import Result
from ..variant import Variant

__all__ = ["Pictures", "grid", "pictures_of", "write_samples"]

SIDES = (2, 8)  # fewest and most images on a side of a grid
NUMBERS = 5_000_000  # numbers in all grids of a page together; the page then stays below about 8 MB
LARGEST = 64  # the most pixels on a side; larger images are reduced
SMALLEST = 24  # the fewest pixels on the longer side; smaller images are enlarged
PAIRS = 100  # pairs of held-out data that are interpolated; only the first ones are shown


class Pictures(NamedTuple):
    """The grids of images of a report, each a data URI.

    Attributes:
        span: The value that is shown as black and the value that is shown as white, in the model's units.
        held_out: Held-out data.
        rows: For each contestant its name and four grids: samples from the prior, samples from the ex-post mixture,
            reconstructions and interpolations.
    """

    span: tuple[float, float]
    held_out: str
    rows: Sequence[tuple[str, Sequence[str]]]


def grid(y: Tensor, columns: int | None = None) -> Tensor:
    """Images [rows, channels, height, width] side by side, [channels, H, W], with a white pixel around each of them."""
    columns = columns or math.ceil(math.sqrt(len(y)))
    padded = torch.nn.functional.pad(y, (1, 1, 1, 1), value=1.0)
    blank = torch.ones(-len(y) % columns, *padded.shape[1:]).to(padded)
    tiles = torch.cat([padded, blank]).unflatten(0, (-1, columns))
    return tiles.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def pictures_of(results: Sequence[Result], data: Data) -> Pictures:
    """Draw the grids of a report. ``data`` are the data that the contestants were compared on."""
    side = _side(len(results), data)
    real = data.scale(data.test) if data.pictures is None else data.pictures
    return Pictures(
        span=_span(real),
        held_out=_tiles(real[: 3 * 4 * side], 4 * side, _span(real)),
        rows=[(result.name, _grids(result, side)) for result in results],
    )


def _side(variants: int, data: Data) -> int:
    """The number of images on a side of a grid. All grids stay within ``NUMBERS``, and the data fill one grid."""
    channels, height, width = data.x_shape
    numbers = 4 * max(1, variants) * channels * min(LARGEST, height) * min(LARGEST, width)
    return max(SIDES[0], min(SIDES[1], math.isqrt(len(data.test)), math.isqrt(NUMBERS // numbers)))


def _span(y: Tensor) -> tuple[float, float]:
    """The values of black and of white: 0 and 1, or the range of the data if some of them are outside [0, 1]."""
    low, high = float(y.min()), float(y.max())
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)


def _grids(result: Result, side: int) -> list[str]:
    """Prior, ex post, reconstructions and interpolations: grids of one size, from the same draws for every variant."""
    variant, count = result.variant, side * side
    y = variant.in_model_units(result.data.test)
    made = (
        draw_data(variant, count, mean=True),
        draw_data(variant, count, prior=result.mixture, mean=True),
        _reconstructions(variant, y[: side * (side // 2)], side),
        _interpolations(variant, y, side),
    )
    return [_tiles(images, side, _span(y)) for images in made]


def _reconstructions(variant: Variant, y: Tensor, side: int) -> Tensor:
    """Rows of ``side`` data, each followed by the row of their reconstructions."""
    made = mean_data(variant, mean_codes(variant, y))
    rows = [part.unflatten(0, (-1, side)) for part in (y, made)]
    return torch.stack(rows, 1).flatten(0, 2)


def _interpolations(variant: Variant, y: Tensor, side: int) -> Tensor:
    """Rows of ``side`` steps from one held-out datum to another."""
    half = min(len(y) // 2, PAIRS)  # more than are shown, because codes of a point mass are standardised over all pairs
    start, end = y[:half], y[half : 2 * half]
    steps = [interpolate(variant, start, end, step / (side - 1))[:side] for step in range(side)]
    return torch.stack(steps, 1).flatten(0, 1)


def _tiles(y: Tensor, columns: int, span: tuple[float, float]) -> str:
    """Images [rows, channels, height, width] as a grid in a data URI.

    ``span`` gives the values of black and of white, and values outside are clamped. Three channels are shown as RGB. If
    there is another number of channels, the first one is shown in grey.
    """
    from matplotlib.image import imsave

    y = ((_reduced(y).float().cpu() - span[0]) / (span[1] - span[0] or 1.0)).clamp(0, 1)
    y = y if y.shape[1] == 3 else y[:, :1].expand(-1, 3, -1, -1)
    # Images are enlarged before they are put side by side, so that the gap between them is always one pixel wide.
    y = torch.nn.functional.interpolate(y, scale_factor=max(1, SMALLEST // max(y.shape[2:])))
    buffer = io.BytesIO()
    imsave(buffer, grid(y, columns).permute(1, 2, 0).contiguous().numpy(), format="png")
    return uri(buffer.getvalue())


def _reduced(y: Tensor) -> Tensor:
    """Images of at most ``LARGEST`` pixels on a side, with their aspect kept."""
    factor = min(1.0, LARGEST / max(y.shape[2:]))
    size = [max(1, round(side * factor)) for side in y.shape[2:]]
    return y if factor == 1.0 else torch.nn.functional.interpolate(y, size, mode="area")


def write_samples(path: Path, variant: Variant, x: Tensor) -> None:
    """Write samples as numbers to a .npy file, or as a grid of images to a .png file.

    The file is written whole or not at all.

    Args:
        path: The file, whose name ends in .npy or .png.
        variant: The pair that they are samples of.
        x: The samples [rows, *x_shape], in the data's units.

    Raises:
        ValueError: If the file is a .png and the data are not images.
    """
    if path.suffix != ".npy" and not is_image(variant.model.x_shape):
        raise ValueError(f"a .png shows images, and a datum has shape {list(variant.model.x_shape)}: name a .npy file")
    with whole_file(path) as part:
        if path.suffix == ".npy":
            np.save(part, x.cpu().numpy(), allow_pickle=False)
        else:
            _write_grid(part, variant.in_model_units(x))


def _write_grid(path: Path, y: Tensor) -> None:
    """Write images [rows, channels, height, width] as a .png file, clamped to [0, 1] so that no value wraps around."""
    from matplotlib.image import imsave

    image = grid(y.clamp(0, 1)).cpu()
    imsave(path, image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy(), format="png")
