"""report: one self-contained page of HTML with the table, the figures and the receipts of a comparison."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..data.data_set import Data
from ..estimate import Number
from ..evaluation.interpolation import interpolate
from ..evaluation.metrics import COLUMNS, MOST
from ..models.networks import is_image
from ..streams import seeded
from ..variant import in_data_units, reconstruct, sample
from . import plots
from .plots import Judged, colour

if TYPE_CHECKING:
    from .comparison import Result

__all__ = ["Plate", "figure_of", "page", "report"]

TILES = (2, 8)  # fewest and most pictures on a side of a grid
PIXELS = 5_000_000  # numbers that all grids of a page may hold together: it stays below some 8 MB
MINUS = "\N{MINUS SIGN}"
LARGEST = 64  # pixels on a side above which a picture is shown reduced


class Cell(NamedTuple):
    """A number as it is printed: to two digits of its error; or the reason why there is none."""

    value: str
    error: str = ""
    reason: str = ""
    best: bool = False


class Line(NamedTuple):
    """A row of the table: its cells, or why it has none."""

    name: str
    colour: str
    cells: Sequence[Cell]
    reason: str


class Group(NamedTuple):
    """Rows whose bounds compare, and what they are bounds of."""

    title: str
    text: str
    lines: Sequence[Line]


class Plate(NamedTuple):
    """A figure with its heading and what one sees in it."""

    title: str
    text: str
    image: str


def report(results: Sequence["Result"], data: Data, settings: dict[str, Any]) -> str:
    """Write the page of a comparison.

    Args:
        results: Of ``compare``, in the order to be shown.
        data: What was compared on.
        settings: Of the run; ``command``, ``versions`` and ``features`` have places of their own.

    Returns:
        HTML that needs no other file, and is the same for the same fits.
    """
    rows = [
        Judged(result.name, result.trained, result.mixture, result.evaluation, result.measure)
        for result in results
        if result.trained is not None and result.mixture is not None and result.evaluation is not None
    ]
    images = is_image(data.x_shape)
    with seeded(0):
        return page(
            "report/report.html.jinja",
            data=data,
            settings=settings,
            summary=_summary(results, rows, data, settings),
            columns=COLUMNS,
            noise={name: rows[0].evaluation.noise(name) for name in COLUMNS} if rows else {},
            groups=_groups(results, rows),
            plates=_plates(rows) if rows else {},
            pictures=_pictures(rows, data) if images else None,
            samples=[] if images else [(row.name, colour(row.name), plots.table_samples(row)) for row in rows],
            receipts=[(row.name, colour(row.name), row.fit.receipt()) for row in rows],
            features=rows[0].evaluation.features if rows else settings.get("features", ""),
            compared=min(len(data.test), len(data.resident), MOST),
            means=images,
            notes=list(dict.fromkeys(note for row in rows for note in row.evaluation.notes)),
        )


def page(template: str, **values: Any) -> str:
    """Fill in a template of this package, values escaped; every page shares the style of ``page.html.jinja``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(template).render(**values)


def _summary(results: Sequence["Result"], rows: Sequence[Judged], data: Data, settings: dict[str, Any]) -> list[str]:
    """What was compared, how it was trained, how it was judged: a sentence each."""
    bounds = sum(row.variant.has_bound for row in rows)
    shape = " x ".join(map(str, data.x_shape))
    counts = {"with a bound of log p(x)": bounds, "with a MAP objective": len(rows) - bounds}
    counts["refused or diverged"] = len(results) - len(rows)
    lines = [
        f"{len(results)} variants: {', '.join(f'{count} {what}' for what, count in counts.items() if count)}; "
        f"on {data.name}, {shape} numbers per datum; units of the model: {settings.get('scale', data.scale)}."
    ]
    if rows:
        run, evaluation = rows[0].fit.settings, rows[0].evaluation
        sizes = sorted({len(row.mixture.loc) for row in rows})
        components = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
        kept = len(data.train) - run["rows"]  # type: ignore[arg-type]
        best = f"; {kept or 'other'} data held back chose the best epoch" if _has_held_out(rows) else ""
        lines.append(
            f"The same for each: networks, {rows[0].variant.z_dim} numbers per code, Adam, "
            f"{settings.get('epochs', run['epochs'])} epochs in batches of {run['batch_size']}, "
            f"learning rate {run['lr']:g}, seed {run['seed']}{best}."
        )
        lines.append(
            f"Judged on the same {evaluation.rows} held-out data: bounds with K = {evaluation.num_particles} draws a "
            f"datum, an ex-post mixture of {components} Gaussians on the codes, Frechet distances in "
            f"{evaluation.features}."
        )
    return lines


def figure_of(number: Number, *, best: bool = False) -> Cell:
    """A number to two digits of its error, or the reason why there is none."""
    if number.value is None:
        return Cell("", reason=number.reason)
    value, error = number.value, number.error
    if error is None or not 1e-9 * max(1.0, abs(value)) < error < math.inf:  # below, it is rounding
        return Cell(f"{value:.4g}".replace("-", MINUS), best=best)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return Cell(f"{value:.{decimals}f}".replace("-", MINUS), f"{error:.{decimals}f}", best=best)


def _best(rows: Sequence[Judged], name: str) -> Number | None:
    """The best of a column where there is a best, and more than one to choose from."""
    numbers = [row.evaluation[name] for row in rows if row.evaluation[name].value is not None]
    up = COLUMNS[name].up
    if up is None or len(numbers) < 2 or name == "log_joint":  # MAP objectives compare with nothing
        return None
    return (max if up else min)(numbers, key=lambda number: number.value or 0.0)


def _groups(results: Sequence["Result"], rows: Sequence[Judged]) -> list[Group]:
    """The table, by what the bound is a bound of."""
    groups = []
    for title, some in _kinds(rows).items():
        best = {name: _best(some, name) for name in COLUMNS}
        lines = [
            Line(
                row.name,
                colour(row.name),
                [figure_of(row.evaluation[name], best=row.evaluation[name] is best[name]) for name in COLUMNS],
                "",
            )
            for row in some
        ]
        notes = dict.fromkeys(row.data.note for row in some if row.data.note)
        groups.append(Group(title, "; ".join(notes), lines))
    judged = {row.name for row in rows}
    missing = [Line(result.name, colour(result.name), [], result.reason) for result in results]
    missing = [line for line in missing if line.name not in judged]
    return [*groups, Group("Refused or diverged", "no figures", missing)] if missing else groups


def _kinds(rows: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Variants by what their bound is a bound of; those without a bound come last."""
    kinds: dict[str, list[Judged]] = {}
    for row in sorted(rows, key=lambda row: not row.variant.has_bound):
        title = f"Bounds of a log {row.measure}" if row.variant.has_bound else "MAP objectives, no bounds"
        kinds.setdefault(title, []).append(row)
    return kinds


def _objectives(rows: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Variants by what was scored on held-out rows: as the kinds, and MAP by whether codes are scored."""
    kinds: dict[str, list[Judged]] = {}
    for title, some in _kinds(rows).items():
        for row in some:
            scored = "log p(x, z)" if row.variant.codes_are_scored else "log p(x | z), codes not scored"
            kinds.setdefault(title if row.variant.has_bound else f"MAP: {scored}", []).append(row)
    return kinds


def _plates(rows: Sequence[Judged]) -> dict[str, list[Plate]]:
    """The figures that all data have, by section."""
    bounds = {title: some for title, some in _kinds(rows).items() if some[0].variant.has_bound}
    split = [row for row in rows if row.evaluation.kl_per_dim]
    codes = [
        Plate(
            "Latent space",
            "Posterior means of held-out data in the plane of their first two principal components"
            + (", coloured by label" if rows[0].data.test_labels is not None else "")
            + ". Ellipses: components of the ex-post mixture, projected, at two standard deviations, darker where they "
            "weigh more. The mixture is fitted on draws from q(z | x), so that it is wider than the means where q is.",
            plots.latent_space(rows),
        )
    ]
    if split:
        text = (
            "Mean over held-out data (2,000 at the most) for each unit of the code, from large to small, on one axis "
            "for all; filled where the unit is active. In the title: active units of all."
        )
        codes.append(Plate("KL by unit of the code", text, plots.kl_per_unit(split)))
    per_datum = [
        Plate(
            "",
            "Box: quartiles and median; whiskers: 5% and 95%; diamond: the mean, which the table gives. Points are "
            "data; those far to the left are counted.",
            plots.bound_per_datum(bounds),
        )
    ]
    return {"training": _training(rows), "codes": codes, "per_datum": per_datum if bounds else []}


def _has_held_out(rows: Sequence[Judged]) -> bool:
    """Whether training held data back and scored them."""
    return all(entry["held_out_loss"] is not None for row in rows for entry in row.fit.rows)


def _training(rows: Sequence[Judged]) -> list[Plate]:
    plates = []
    if _has_held_out(rows):
        text = (
            "Minus the held-out loss, on training data held back, once per epoch; up is better. Axes differ: curves "
            "compare within a panel of bounds, and MAP objectives compare with nothing. The steep first quarter may "
            "lie below the axis."
        )
        plates.append(Plate("Held-out objective", text, plots.objectives(_objectives(rows))))
    text = (
        "Each on its own axis, nats per datum against epochs. In colour: the held-out objective, the dot at the epoch "
        "that was kept. Dashed: minus the training loss; with a weighted KL or a penalty it is another quantity, with "
        "its axis on the right."
    )
    plates.append(Plate("Convergence", text, plots.training(rows)))
    titles = {"sigma": "sigma, in the model's units", "kl_weight": "weight of the KL"}
    moving = {key: (title, some) for key, title in titles.items() if (some := plots.moved(rows, key))}
    if moving:
        fixed = {row.name: row.variant.kl_weight for row in rows if row not in plots.moved(rows, "kl_weight")}
        other = [f"{name} {weight:.4g}" for name, weight in fixed.items() if weight not in (0.0, 1.0)]
        text = "Only what moved. " + (f"A constant KL weight other than 1: {', '.join(other)}." if other else "")
        plates.append(Plate("Scale and KL weight over time", text, plots.over_time(moving)))
    return plates


def _side(rows: int, data: Data) -> int:
    """Pictures on a side of a grid: all grids together stay within ``PIXELS``, and the data fill one."""
    channels, height, width = data.x_shape
    numbers = 4 * max(1, rows) * channels * min(LARGEST, height) * min(LARGEST, width)
    return max(TILES[0], min(TILES[1], math.isqrt(len(data.test)), math.isqrt(PIXELS // numbers)))


def _reduced(y: Tensor) -> Tensor:
    """Pictures of at most ``LARGEST`` pixels a side, the aspect kept."""
    factor = min(1.0, LARGEST / max(y.shape[2:]))
    size = [max(1, round(side * factor)) for side in y.shape[2:]]
    return y if factor == 1.0 else torch.nn.functional.interpolate(y, size, mode="area")


def _span(y: Tensor) -> tuple[float, float]:
    """What is black and what is white: 0 and 1, or the range of the held-out data where they leave [0, 1]."""
    low, high = float(y.min()), float(y.max())
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)


def _pictures(rows: Sequence[Judged], data: Data) -> dict[str, Any]:
    """Grids of pictures: the data, and for each variant samples, reconstructions and interpolations."""
    side = _side(len(rows), data)
    real = data.scale(data.test) if data.pictures is None else data.pictures
    return {
        "span": _span(real),
        "real": plots.tiles(_reduced(real[: 4 * side * 3]), 4 * side, _span(real)),
        "rows": [(row.name, colour(row.name), _grids(row, side)) for row in rows],
    }


def _grids(row: Judged, side: int) -> list[str]:
    """Prior, ex post, reconstructions, interpolations: grids of one size, by the same draws for every variant."""
    variant, x = row.variant, row.data.test
    span = _span(row.data.scale(x))
    count, half = side * side, min(len(x) // 2, 100)
    pairs = x[: side * (side // 2)]
    both = torch.stack([part.unflatten(0, (-1, side)) for part in (pairs, reconstruct(variant, pairs).to(pairs))], 1)
    ends = [variant.in_model_units(some) for some in (x[:half], x[half : 2 * half])]
    steps = [
        in_data_units(variant, interpolate(variant, ends[0], ends[1], step / (side - 1)))[:side] for step in range(side)
    ]  # of many pairs, since codes of a point mass are standardised by all that are given
    made = (
        sample(variant, count, mean=True),
        sample(variant, count, prior=row.mixture, mean=True),
        both.flatten(0, 2),
        torch.stack(steps, 1).flatten(0, 1),
    )
    return [plots.tiles(_reduced(variant.in_model_units(y)), side, span) for y in made]
