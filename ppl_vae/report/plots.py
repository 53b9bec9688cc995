"""The plots of a report, each a PNG image in a data URI."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..coding import encode, sample
from ..drawing import GREY, LIGHT, blank, embedded, panels, tidy
from ..models import Mixture
from ..streams import chosen
from ..studies import Result
from ..variant import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "bound_per_datum",
    "convergence",
    "kl_per_unit",
    "latent_space",
    "moved",
    "objectives",
    "over_time",
    "series",
    "table_samples",
]

PRIOR, EX_POST = "#1f77b4", "#e6550d"  # colours of samples, by the density that their codes are drawn from
SHOWN = 1000  # held-out data in a scatter plot, at most
SIDE_BY_SIDE = 5  # small panels, one per variant
LOSSES = ("loss", "held_out_loss")  # columns of the history that are drawn with a minus sign, as objectives


Series = np.ndarray[Any, np.dtype[np.float64]]
Curves = Mapping[str, Sequence[Series]]  # the curves of each contestant, one per seed
Inks = Mapping[str, str]  # the colour of each contestant


def series(history: Sequence[Mapping[str, Any]], key: str) -> Series:
    """A column of a history, one value per epoch; losses are negated, so that higher is better in every curve."""
    sign = -1.0 if key in LOSSES else 1.0
    return np.array([math.nan if row[key] is None else sign * float(row[key]) for row in history], dtype=float)


def moved(results: Sequence[Result], key: str) -> list[Result]:
    """The results whose history has more than one value in the column ``key``."""
    return [result for result in results if len({epoch[key] for epoch in result.fit.rows}) > 1]


def _limits(series: Sequence[np.ndarray[Any, Any]], share: float) -> tuple[float, float]:
    """Limits of an axis that shows all curves, each without the lowest ``share`` of its values."""
    finite = [values[np.isfinite(values)] for values in series]
    low = min(float(np.quantile(values, share)) for values in finite if len(values))
    high = max(float(values.max()) for values in finite if len(values))
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _label_ends(axes: "Axes", height: float, curves: Curves, inks: Inks) -> None:
    """Write each name to the right of the end of its first curve, in its colour, and keep the names apart."""
    from sklearn.isotonic import isotonic_regression

    place = axes.transData + axes.transAxes.inverted()
    names = list(curves)
    ends = [(len(some[0]), float(some[0][-1])) for some in curves.values()]
    wanted = [min(1.0, max(0.0, float(place.transform(end)[1]))) for end in ends]
    order = sorted(range(len(names)), key=lambda index: wanted[index])
    gaps = 0.16 / height * np.arange(len(names))
    spots = gaps + isotonic_regression(np.array(wanted)[order] - gaps, y_min=0.0, y_max=max(0.0, 1.0 - gaps[-1]))
    for index, spot in zip(order, spots, strict=True):
        ink = inks[names[index]]
        line = {"arrowstyle": "-", "color": ink, "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 1}
        axes.annotate(
            names[index],
            ends[index],
            (1.06, spot),
            textcoords="axes fraction",
            color=ink,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops=line,
        )


def _draw(axes: "Axes", curves: Curves, inks: Inks) -> None:
    """Draw curves against epochs. Where a contestant has several, they are thin."""
    for name, some in curves.items():
        for values in some:
            axes.plot(range(1, len(values) + 1), values, color=inks[name], lw=1.3 if len(some) == 1 else 0.6)
    axes.set_xlabel("epoch", fontsize=8)
    axes.margins(x=0.02)
    axes.locator_params("x", integer=True)


def objectives(groups: Mapping[str, Curves], inks: Inks) -> str:
    """Held-out objectives against epochs, with one panel per kind of objective and one curve per seed."""
    width, height = 5.6, 2.9
    figure, every = panels(len(groups), 2, width, height)
    for axes, (title, curves) in zip(every, groups.items(), strict=True):
        tidy(axes, title)
        _draw(axes, curves, inks)
        axes.set_ylim(_limits([values for some in curves.values() for values in some], 0.25))
        axes.set_ylabel("nats per datum", fontsize=8)
        _label_ends(axes, 0.75 * height, curves, inks)
    return embedded(figure)


def convergence(results: Sequence[Result], inks: Inks) -> str:
    """Held-out objective and minus the training loss against epochs, with one panel and one axis per variant."""
    figure, every = panels(len(results), SIDE_BY_SIDE, 2.24, 1.55)
    for axes, result in zip(every, results, strict=True):
        tidy(axes, result.name, inks[result.name])
        held_out, loss = series(result.fit.rows, "held_out_loss"), series(result.fit.rows, "loss")
        epochs = range(1, len(loss) + 1)
        aside = axes if _is_objective(result) else axes.twinx()
        aside.plot(epochs, loss, color=GREY, lw=1, ls=(0, (3, 1.5)))
        axes.plot(epochs, held_out, color=inks[result.name], lw=1.4)
        best = result.fit.best_epoch
        axes.plot([best], [held_out[best - 1]], "o", color=inks[result.name], ms=3.5)
        axes.margins(x=0.04)
        axes.locator_params("x", integer=True, nbins=5)
        if aside is axes:
            axes.set_ylim(_limits([held_out, loss], 0.15))
            continue
        axes.set_ylim(_limits([held_out if result.fit.rows[0]["held_out_loss"] is not None else loss], 0.15))
        aside.set_ylim(_limits([loss], 0.15))
        aside.spines[:].set_visible(False)
        aside.locator_params("y", nbins=4)
        aside.tick_params(labelsize=7, color=GREY, labelcolor="#999999")
    return embedded(figure)


def _is_objective(result: Result) -> bool:
    """Whether minus the training loss is the held-out objective: it has no penalty and no weighted KL."""
    weights = {epoch["kl_weight"] for epoch in result.fit.rows}
    return not len(result.variant.model.penalties) and weights <= {float(result.variant.codes_are_scored)}


def over_time(columns: Mapping[str, tuple[str, Sequence[Result]]], inks: Inks) -> str:
    """Columns of the history against epochs, one panel per column.

    Args:
        columns: For each column of the history, the title of its panel and the results to be drawn. The axis of
            ``sigma`` is logarithmic if sigma more than doubles or halves.
        inks: The colour of each contestant.
    """
    from matplotlib.ticker import LogLocator

    width, height = 5.6, 2.6
    figure, every = panels(len(columns), 2, width, height)
    for axes, (key, (title, some)) in zip(every, columns.items(), strict=True):
        tidy(axes, title)
        curves = {result.name: [series(result.fit.rows, key)] for result in some}
        _draw(axes, curves, inks)
        low, high = axes.get_ylim()
        if key == "sigma" and high > 2 * low > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
            axes.yaxis.set_major_formatter("{x:.3g}")
            axes.yaxis.set_minor_formatter("")
        _label_ends(axes, 0.75 * height, curves, inks)
    return embedded(figure)


def _dots(axes: "Axes", points: Tensor, ink: Any, alpha: float = 1.0) -> None:
    """A scatter plot of points [rows, 2]."""
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=5, c=ink, alpha=alpha, lw=0)


def _say_outside(axes: "Axes", count: int, y: float, side: str) -> None:
    """Write how many data lie outside the axes, at the height y, on the left or on the right side."""
    if count:
        x, across = {"left": 0.003, "right": 0.98}[side], axes.get_yaxis_transform()
        axes.text(x, y, f"{count} outside", transform=across, ha=side, va="bottom", fontsize=6, color=GREY)


def _plane(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """The mean [d] of x [rows, d], its first two principal directions [2, d], and their share of the variance."""
    centre = x.mean(0)
    _, values, directions = torch.linalg.svd(x - centre, full_matrices=False)
    first = directions[:2]
    largest = first.gather(1, first.abs().argmax(1, keepdim=True))
    first = torch.cat([first * largest.sign(), torch.zeros(2 - len(first), x.shape[1]).to(x)])
    return centre, first, float(values[:2].square().sum() / values.square().sum().clamp_min(1e-30))


def _ink(labels: Tensor | None, rows: int) -> tuple[list[Any], dict[str, Any]]:
    """A colour per datum, and the colour of each class for a legend if there are at most 20 classes."""
    from matplotlib import colormaps

    if labels is None:
        return ["#33668899"] * rows, {}
    classes, index = labels[:rows].unique(return_inverse=True)
    if len(classes) > 20:
        return list(colormaps["viridis"](index.numpy() / len(classes))), {}
    inks = colormaps["tab10" if len(classes) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return [inks[i] for i in index.tolist()], {f"{value:g}": inks[i] for i, value in enumerate(classes.tolist())}


@torch.no_grad()
def _ellipses(axes: "Axes", mixture: Mixture, centre: Tensor, directions: Tensor) -> None:
    """Draw each component at two standard deviations; a component with less weight is fainter."""
    from matplotlib.patches import Ellipse

    law: Any = mixture()
    weights = law.mixture_distribution.probs.cpu()
    means = (law.component_distribution.loc.cpu() - centre) @ directions.mT
    spreads = directions @ law.component_distribution.covariance_matrix.cpu() @ directions.mT
    for weight, mean, spread in zip(weights / weights.max(), means, spreads, strict=True):
        values, vectors = torch.linalg.eigh(spread)
        sides = (4 * values.clamp_min(0).sqrt()).tolist()
        angle = math.degrees(math.atan2(float(vectors[1, 0]), float(vectors[0, 0])))
        ink = (0.0, 0.0, 0.0, 0.25 + 0.6 * float(weight))
        axes.add_patch(Ellipse((float(mean[0]), float(mean[1])), *sides, angle=angle, fill=False, ec=ink, lw=0.9))


def latent_space(results: Sequence[Result], inks: Inks) -> str:
    """Codes of held-out data in their first principal plane, with the components of the ex-post mixture as ellipses."""
    from matplotlib.lines import Line2D

    figure, every = panels(len(results), SIDE_BY_SIDE, 2.24, 2.24)
    legend: dict[str, Any] = {}
    for axes, result in zip(every, results, strict=True):
        some = chosen(len(result.data.test), SHOWN, 0)
        z = encode(result.variant, result.data.test[some]).cpu()
        centre, directions, share = _plane(z)
        plane = (z - centre) @ directions.mT
        dots, legend = _ink(None if result.data.test_labels is None else result.data.test_labels[some], len(z))
        _dots(axes, plane, dots)
        _ellipses(axes, result.mixture, centre, directions)
        axes.set_aspect("equal", adjustable="datalim")
        tidy(axes, result.name, inks[result.name])
        axes.set_xlabel(f"{share:.0%} of the variance", fontsize=7, color="#444444", labelpad=2)
    marks = [Line2D([], [], ls="", marker="o", ms=5, color=ink) for ink in legend.values()]
    if marks:
        names = list(legend)
        figure.legend(marks, names, loc="outside upper center", ncols=10, fontsize=8, frameon=False, handletextpad=0)
    return embedded(figure)


def kl_per_unit(results: Sequence[Result], inks: Inks) -> str:
    """Bars of the mean KL of each unit of the code, from large to small, filled if the unit is active."""
    figure, every = panels(len(results), SIDE_BY_SIDE, 2.24, 1.5, sharey=True)
    for axes, result in zip(every, results, strict=True):
        kl = result.evaluation.kl_per_dim
        fills = [inks[result.name] if active else "white" for active in result.evaluation.active_per_dim]
        axes.bar(range(1, len(kl) + 1), kl, color=fills, edgecolor=inks[result.name], lw=0.9)
        tidy(axes, f"{result.name}: {result.evaluation['active_units']} of {len(kl)}", inks[result.name])
        axes.set_xticks([1, len(kl)] if len(kl) > 1 else [1])
    every[0].set_ylabel("KL, nats", fontsize=8)
    return embedded(figure)


def bound_per_datum(groups: Mapping[str, Sequence[Result]], inks: Inks) -> str:
    """Box plots and points of the bounds of all held-out data, with one panel per kind of bound."""
    sizes = [len(results) for results in groups.values()]
    figure = blank(11.2, 0.3 * sum(sizes) + 0.75 * len(sizes))
    every = figure.subplots(len(sizes), 1, squeeze=False, height_ratios=[size + 0.6 for size in sizes]).flatten()
    shake = np.random.default_rng(0)
    for axes, (title, results) in zip(every, groups.items(), strict=True):
        tidy(axes, title)
        _boxes(axes, results, inks, shake)
        axes.set_xlabel("nats", fontsize=8)
    return embedded(figure)


def _boxes(axes: "Axes", results: Sequence[Result], inks: Inks, shake: np.random.Generator) -> None:
    """Draw the bounds of each result as a box and as points, from top to bottom; ``shake`` keeps points apart."""
    bounds = [np.array(result.evaluation.bound_per_datum) for result in results]
    places = list(range(len(results), 0, -1))
    for place, result, values in zip(places, results, bounds, strict=True):
        some = values[chosen(len(values), SHOWN, 0).numpy()]
        heights = place + shake.uniform(-0.3, 0.3, len(some))
        axes.scatter(some, heights, s=3, c=inks[result.name], alpha=0.25, lw=0)
    line, mean = {"color": "black", "lw": 1.0}, {"marker": "D", "mfc": "white", "mec": "black", "ms": 3.5}
    look: dict[str, Any] = {f"{part}props": line for part in ("median", "box", "whisker", "cap")}
    look |= {"orientation": "horizontal", "widths": 0.5, "showfliers": False, "showmeans": True, "meanprops": mean}
    axes.boxplot(bounds, positions=places, whis=(5, 95), **look)
    axes.set_yticks(places, [result.name for result in results], fontsize=8)
    low = min(2 * float(np.quantile(values, 0.05)) - float(np.median(values)) for values in bounds)
    high = max(float(values.max()) for values in bounds)
    axes.set_xlim(low, high + 0.02 * (high - low))
    for place, values in zip(places, bounds, strict=True):
        _say_outside(axes, int((values < low).sum()), place - 0.3, "left")


def table_samples(result: Result) -> str:
    """Plots of the samples of a table beside held-out data.

    The scatter plots show principal components of the held-out data, and the histograms the first 8 columns.
    """
    x = result.data.test[chosen(len(result.data.test), SHOWN, 0)]
    drawn = {
        PRIOR: sample(result.variant, len(x)),
        EX_POST: sample(result.variant, len(x), prior=result.mixture),
    }
    size = x[0].numel()
    pairs = [(0, 1), (1, 2)][: min(2, size - 1)]
    columns = 4 * len(pairs) + 4  # two for each scatter plot, and four histograms side by side
    figure = blank(11.2 * columns / 12, 1.95, "none")
    cells = figure.add_gridspec(2, columns, left=0.012, right=0.992, bottom=0.1, top=0.9, wspace=0.14, hspace=0.42)
    for row, pair in enumerate(pairs):
        every = [figure.add_subplot(cells[:, place : place + 2]) for place in (4 * row, 4 * row + 2)]
        _scatters(every, result.variant, x, drawn, pair)
    for column in range(min(8, size)):
        axes = figure.add_subplot(cells[column // 4, 4 * len(pairs) + column % 4])
        made = {ink: y.flatten(1).cpu()[:, column] for ink, y in drawn.items()}
        _histograms(axes, x.flatten(1)[:, column], made)
        axes.set_title(f"column {column + 1}", fontsize=6.5, pad=2, color="#444444")
    return embedded(figure)


def _scatters(
    every: Sequence["Axes"], variant: Variant, x: Tensor, drawn: Mapping[str, Tensor], pair: tuple[int, int]
) -> None:
    """Draw held-out data x (grey) and samples in the plane of two principal components of x, one panel per prior."""
    y = variant.in_model_units(x).flatten(1).cpu()
    centre = y.mean(0)
    directions = torch.linalg.svd(y - centre, full_matrices=False)[2][list(pair)]
    real = (y - centre) @ directions.mT
    room = 0.2 * (real.amax(0) - real.amin(0))
    low, high = real.amin(0) - room, real.amax(0) + room
    titles = {PRIOR: "prior", EX_POST: "ex post"}
    for axes, (ink, samples) in zip(every, drawn.items(), strict=True):
        made = (variant.in_model_units(samples).flatten(1).cpu() - centre) @ directions.mT
        _dots(axes, real, LIGHT)
        _dots(axes, made, ink, 0.5)
        axes.spines[:].set_color(LIGHT)
        axes.set_title(f"{titles[ink]}: components {pair[0] + 1}, {pair[1] + 1}", fontsize=7, pad=3, color=ink)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlim(float(low[0]), float(high[0]))
        axes.set_ylim(float(low[1]), float(high[1]))
        outside = int(((made < low) | (made > high)).any(1).sum())
        _say_outside(axes, outside, float(low[1]), "right")


def _histograms(axes: "Axes", real: Tensor, made: Mapping[str, Tensor]) -> None:
    """Draw a column of held-out data [rows] as grey bars and columns of samples as outlines, all as shares."""
    low, high = float(real.min()), float(real.max())
    room = 0.15 * (high - low) or 1.0
    bins = np.linspace(low - room, high + room, 25).tolist()
    weights = np.full(len(real), 1 / len(real))
    axes.hist(real.numpy(), bins=bins, weights=weights, color=LIGHT)
    for ink, values in made.items():
        axes.hist(values.numpy(), bins=bins, weights=weights, color=ink, histtype="step", lw=1)
    tidy(axes)
    axes.set_yticks([])
    axes.tick_params(labelsize=5.5, pad=1.5, length=2)
