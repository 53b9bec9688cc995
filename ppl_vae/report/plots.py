"""Figures of a report, each a PNG in a data URI, drawn without matplotlib's global state."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ..catalogue import VARIANTS
from ..data.data_set import Data
from ..drawing import COLOURS, GREY, LIGHT, blank, embedded, panels, tidy, uri
from ..evaluation.codes import ACTIVE
from ..evaluation.evaluation import Evaluation
from ..models import Mixture
from ..streams import chosen
from ..training.fitting import Fit
from ..variant import Variant, encode, evaluating, sample
from .pictures import grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
__all__ = [
    "Judged",
    "bound_per_datum",
    "colour",
    "kl_per_unit",
    "latent_space",
    "moved",
    "objectives",
    "over_time",
    "table_samples",
    "tiles",
    "training",
]
PRIOR, EX_POST = "#1f77b4", "#e6550d"  # samples of a table, by where their codes come from
SHOWN = 1000  # held-out data in a scatter
COLUMNS = 5  # small panels side by side
LOSSES = ("loss", "held_out_loss")  # columns of the history that are drawn as objectives, upwards


class Judged(NamedTuple):
    """A variant with all that a figure can be drawn of."""

    name: str
    fit: Fit
    mixture: Mixture
    evaluation: Evaluation
    measure: str

    @property
    def variant(self) -> Variant:
        """The trained pair."""
        return self.fit.variant

    @property
    def data(self) -> Data:
        """What it was trained on."""
        return self.fit.data


def colour(name: str) -> str:
    """The colour of a variant, the same in every figure and every report."""
    names = list(VARIANTS)
    return COLOURS[(names.index(name) if name in names else sum(map(ord, name))) % len(COLOURS)]


def tiles(y: Tensor, columns: int, span: tuple[float, float]) -> str:
    """Images [rows, channels, height, width] as a grid, ``span`` from black to white, clamped; RGB for 3 channels."""
    from matplotlib.image import imsave

    y = ((y.float().cpu() - span[0]) / (span[1] - span[0] or 1.0)).clamp(0, 1)
    y = y if y.shape[1] == 3 else y[:, :1].expand(-1, 3, -1, -1)
    y = torch.nn.functional.interpolate(y, scale_factor=max(1, 24 // max(y.shape[2:])))  # the gap is one pixel for all
    buffer = io.BytesIO()
    imsave(buffer, grid(y, columns).permute(1, 2, 0).contiguous().numpy(), format="png")
    return uri(buffer.getvalue())


def _series(fit: Fit, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A column of the history; of a loss, its negative, so that all curves of objectives go up."""
    sign = -1.0 if key in LOSSES else 1.0
    return np.array([math.nan if row[key] is None else sign * row[key] for row in fit.rows], dtype=float)


def moved(rows: Sequence[Judged], key: str) -> list[Judged]:
    """Those of which a column of the history took more than one value."""
    return [row for row in rows if len({entry[key] for entry in row.fit.rows}) > 1]


def _held(series: Sequence[np.ndarray[Any, Any]], share: float) -> tuple[float, float]:
    """An interval that shows each curve but for the first, steep ``share`` of its values."""
    finite = [values[np.isfinite(values)] for values in series]
    low = min(float(np.quantile(values, share)) for values in finite if len(values))
    high = max(float(values.max()) for values in finite if len(values))
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _label_ends(axes: "Axes", height: float, rows: Sequence[Judged], key: str) -> None:
    """Write each curve's name right of its end, in its colour, pushed apart where they would overlap."""
    from sklearn.isotonic import isotonic_regression

    place = axes.transData + axes.transAxes.inverted()
    ends = [(len(row.fit.rows), float(_series(row.fit, key)[-1])) for row in rows]
    wanted = [min(1.0, max(0.0, float(place.transform(end)[1]))) for end in ends]
    order = sorted(range(len(rows)), key=lambda index: wanted[index])
    gaps = 0.16 / height * np.arange(len(rows))
    spots = gaps + isotonic_regression(np.array(wanted)[order] - gaps, y_min=0.0, y_max=max(0.0, 1.0 - gaps[-1]))
    for index, spot in zip(order, spots, strict=True):
        ink = colour(rows[index].name)
        line = {"arrowstyle": "-", "color": ink, "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 1}
        axes.annotate(
            rows[index].name,
            ends[index],
            (1.06, spot),
            textcoords="axes fraction",
            color=ink,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops=line,
        )


def _curves(axes: "Axes", height: float, rows: Sequence[Judged], key: str) -> None:
    for row in rows:
        values = _series(row.fit, key)
        axes.plot(range(1, len(values) + 1), values, color=colour(row.name), lw=1.3)
    axes.set_xlabel("epoch", fontsize=8)
    axes.margins(x=0.02)
    axes.locator_params("x", integer=True)


def objectives(groups: Mapping[str, Sequence[Judged]]) -> str:
    """Held-out objectives against epochs, a panel and an axis for each kind, every curve labelled at its end."""
    width, height = 5.6, 2.9
    figure, every = panels(len(groups), 2, width, height)
    for axes, (title, rows) in zip(every, groups.items(), strict=True):
        tidy(axes, title)
        _curves(axes, height, rows, "held_out_loss")
        axes.set_ylim(_held([_series(row.fit, "held_out_loss") for row in rows], 0.25))
        axes.set_ylabel("nats per datum", fontsize=8)
        _label_ends(axes, 0.75 * height, rows, "held_out_loss")
    return embedded(figure)


def training(rows: Sequence[Judged]) -> str:
    """A panel per variant, each on its own axis: held-out objective, and minus the training loss."""
    figure, every = panels(len(rows), COLUMNS, 2.24, 1.55)
    for axes, row in zip(every, rows, strict=True):
        tidy(axes, row.name, colour(row.name))
        held_out, loss = _series(row.fit, "held_out_loss"), _series(row.fit, "loss")
        epochs = range(1, len(loss) + 1)
        aside = axes if _is_objective(row) else axes.twinx()
        aside.plot(epochs, loss, color=GREY, lw=1, ls=(0, (3, 1.5)))
        axes.plot(epochs, held_out, color=colour(row.name), lw=1.4)
        best = row.fit.best_epoch
        axes.plot([best], [held_out[best - 1]], "o", color=colour(row.name), ms=3.5)
        axes.margins(x=0.04)
        axes.locator_params("x", integer=True, nbins=5)
        if aside is axes:
            axes.set_ylim(_held([held_out, loss], 0.15))
            continue
        axes.set_ylim(_held([held_out if row.fit.rows[0]["held_out_loss"] is not None else loss], 0.15))
        aside.set_ylim(_held([loss], 0.15))
        aside.spines[:].set_visible(False)
        aside.locator_params("y", nbins=4)
        aside.tick_params(labelsize=7, color=GREY, labelcolor="#999999")
    return embedded(figure)


def _is_objective(row: Judged) -> bool:
    """Whether the training loss is minus what is scored on held-out data: no penalty, no weight on the KL."""
    weights = {entry["kl_weight"] for entry in row.fit.rows}
    return not len(row.variant.model.penalties) and weights <= {float(row.variant.codes_are_scored)}


def over_time(rows: Mapping[str, tuple[str, Sequence[Judged]]]) -> str:
    """What training moved, by columns of the history: ``{key: (title, variants)}``; a sigma that halves, by its log."""
    from matplotlib.ticker import LogLocator

    width, height = 5.6, 2.6
    figure, every = panels(len(rows), 2, width, height)
    for axes, (key, (title, some)) in zip(every, rows.items(), strict=True):
        tidy(axes, title)
        _curves(axes, height, some, key)
        low, high = axes.get_ylim()
        if key == "sigma" and high > 2 * low > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
            axes.yaxis.set_major_formatter("{x:.3g}")
            axes.yaxis.set_minor_formatter("")
        _label_ends(axes, 0.75 * height, some, key)
    return embedded(figure)


def _dots(axes: "Axes", points: Tensor, ink: Any, alpha: float = 1.0) -> None:
    """A scatter of points [rows, 2]."""
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=5, c=ink, alpha=alpha, lw=0)


def _say_outside(axes: "Axes", count: int, y: float, side: str) -> None:
    """Say how many data the axes leave out, at the height y and on the left or right."""
    if count:
        x, across = {"left": 0.003, "right": 0.98}[side], axes.get_yaxis_transform()
        axes.text(x, y, f"{count} outside", transform=across, ha=side, va="bottom", fontsize=6, color=GREY)


def _plane(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean [d], first two principal directions [2, d] and their share of the variance of x [rows, d]."""
    centre = x.mean(0)
    _, values, directions = torch.linalg.svd(x - centre, full_matrices=False)
    first = directions[:2]
    largest = first.gather(1, first.abs().argmax(1, keepdim=True))
    first = torch.cat([first * largest.sign(), torch.zeros(2 - len(first), x.shape[1]).to(x)])
    return centre, first, float(values[:2].square().sum() / values.square().sum().clamp_min(1e-30))


def _ink(labels: Tensor | None, rows: int) -> tuple[list[Any], dict[str, Any]]:
    """A colour per datum, and a legend if the classes are few enough to name."""
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
    """Each component at two standard deviations, the fainter the less it weighs."""
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


def latent_space(rows: Sequence[Judged]) -> str:
    """Codes of held-out data in their first principal plane, and the ex-post mixture's components as ellipses."""
    from matplotlib.lines import Line2D

    figure, every = panels(len(rows), COLUMNS, 2.24, 2.24)
    legend: dict[str, Any] = {}
    for axes, row in zip(every, rows, strict=True):
        some = chosen(len(row.data.test), SHOWN, 0)
        z = encode(row.variant, row.data.test[some]).cpu()
        centre, directions, share = _plane(z)
        plane = (z - centre) @ directions.mT
        inks, legend = _ink(None if row.data.test_labels is None else row.data.test_labels[some], len(z))
        _dots(axes, plane, inks)
        _ellipses(axes, row.mixture, centre, directions)
        axes.set_aspect("equal", adjustable="datalim")
        tidy(axes, row.name, colour(row.name))
        axes.set_xlabel(f"{share:.0%} of the variance", fontsize=7, color="#444444", labelpad=2)
    marks = [Line2D([], [], ls="", marker="o", ms=5, color=ink) for ink in legend.values()]
    if marks:
        names = list(legend)
        figure.legend(marks, names, loc="outside upper center", ncols=10, fontsize=8, frameon=False, handletextpad=0)
    return embedded(figure)


def _units(row: Judged) -> tuple[Tensor, Tensor]:
    """KL of each coordinate of a code, nats, from large to small, and whether its posterior mean varies over data."""
    some = row.data.test[chosen(len(row.data.test), 2 * SHOWN, 0)]
    y, prior = row.variant.in_model_units(some), row.variant.model.prior()
    with evaluating(row.variant):
        chunks = [row.variant.guide.posterior(part).base_dist for part in y.split(row.variant.at_once)]
        kl = torch.cat([kl_divergence(q, prior.base_dist.expand(q.batch_shape)) for q in chunks]).mean(0)
        active = torch.cat([q.mean for q in chunks]).var(0) > ACTIVE
    order = kl.argsort(descending=True)
    return kl[order].cpu(), active[order].cpu()


def kl_per_unit(rows: Sequence[Judged]) -> str:
    """Bars of the KL of each coordinate of a code, filled where the unit is active, hollow where it is not."""
    figure, every = panels(len(rows), COLUMNS, 2.24, 1.5, sharey=True)
    for axes, row in zip(every, rows, strict=True):
        kl, active = _units(row)
        fills = [colour(row.name) if on else "white" for on in active.tolist()]
        axes.bar(range(1, len(kl) + 1), kl.tolist(), color=fills, edgecolor=colour(row.name), lw=0.9)
        tidy(axes, f"{row.name}: {row.evaluation['active_units']} of {len(kl)}", colour(row.name))
        axes.set_xticks([1, len(kl)] if len(kl) > 1 else [1])
    every[0].set_ylabel("KL, nats", fontsize=8)
    return embedded(figure)


def bound_per_datum(groups: Mapping[str, Sequence[Judged]]) -> str:
    """Box and strip of each held-out datum's bound, a panel and an axis for each kind of bound."""
    sizes = [len(rows) for rows in groups.values()]
    figure = blank(11.2, 0.3 * sum(sizes) + 0.75 * len(sizes))
    every = figure.subplots(len(sizes), 1, squeeze=False, height_ratios=[size + 0.6 for size in sizes]).flatten()
    shake, line = np.random.default_rng(0), {"color": "black", "lw": 1.0}
    look: dict[str, Any] = {"orientation": "horizontal", "widths": 0.5, "showfliers": False, "showmeans": True}
    look |= {f"{part}props": line for part in ("median", "box", "whisker", "cap")}
    look["meanprops"] = {"marker": "D", "mfc": "white", "mec": "black", "ms": 3.5}
    for axes, (title, rows) in zip(every, groups.items(), strict=True):
        tidy(axes, title)
        values = [np.array(row.evaluation.bound_per_datum) for row in rows]
        places = list(range(len(rows), 0, -1))
        for place, row, one in zip(places, rows, values, strict=True):
            some = one[chosen(len(one), SHOWN, 0).numpy()]
            axes.scatter(some, place + shake.uniform(-0.3, 0.3, len(some)), s=3, c=colour(row.name), alpha=0.25, lw=0)
        axes.boxplot(values, positions=places, whis=(5, 95), **look)
        axes.set_yticks(places, [row.name for row in rows], fontsize=8)
        low = min(2 * float(np.quantile(one, 0.05)) - float(np.median(one)) for one in values)
        high = max(float(one.max()) for one in values)
        axes.set_xlim(low, high + 0.02 * (high - low))
        for place, one in zip(places, values, strict=True):
            _say_outside(axes, int((one < low).sum()), place - 0.3, "left")
        axes.set_xlabel("nats", fontsize=8)
    return embedded(figure)


def table_samples(row: Judged) -> str:
    """Of a table: principal components of held-out rows against samples, and marginals of up to 8 columns."""
    x = row.data.test[chosen(len(row.data.test), SHOWN, 0)]
    drawn = {
        PRIOR: sample(row.variant, len(x)),
        EX_POST: sample(row.variant, len(x), prior=row.mixture),
    }
    pairs = [(0, 1), (1, 2)][: min(2, x[0].numel() - 1)]
    columns = 4 * len(pairs) + 4
    figure = blank(11.2 * columns / 12, 1.95, "none")
    cells = figure.add_gridspec(2, columns, left=0.012, right=0.992, bottom=0.1, top=0.9, wspace=0.14, hspace=0.42)
    _scatters(figure, cells, row, x, drawn, pairs)
    whole = {ink: y.flatten(1).cpu() for ink, y in drawn.items()}
    for column in range(min(8, x[0].numel())):
        axes = figure.add_subplot(cells[column // 4, 4 * len(pairs) + column % 4])
        real = x.flatten(1)[:, column]
        low, high = float(real.min()), float(real.max())
        room = 0.15 * (high - low) or 1.0
        bins, weights = np.linspace(low - room, high + room, 25).tolist(), np.full(len(x), 1 / len(x))
        axes.hist(real.numpy(), bins=bins, weights=weights, color=LIGHT)
        for ink, y in whole.items():
            axes.hist(y[:, column].numpy(), bins=bins, weights=weights, color=ink, histtype="step", lw=1)
        tidy(axes)
        axes.set_title(f"column {column + 1}", fontsize=6.5, pad=2, color="#444444")
        axes.set_yticks([])
        axes.tick_params(labelsize=5.5, pad=1.5, length=2)
    return embedded(figure)


def _scatters(
    figure: "Figure",
    cells: Any,
    row: Judged,
    x: Tensor,
    drawn: Mapping[str, Tensor],
    pairs: Sequence[tuple[int, int]],
) -> None:
    """Scatter of held-out rows (grey) and samples in planes of principal components; what lies outside is counted."""
    y = row.variant.in_model_units(x).flatten(1).cpu()
    centre = y.mean(0)
    directions = torch.linalg.svd(y - centre, full_matrices=False)[2]
    real = (y - centre) @ directions.mT
    low, high = real.amin(0), real.amax(0)
    low, high = low - 0.2 * (high - low), high + 0.2 * (high - low)
    titles = {PRIOR: "prior", EX_POST: "ex post"}
    for place, (pair, ink) in enumerate((pair, ink) for pair in pairs for ink in drawn):
        axes = figure.add_subplot(cells[:, 2 * place : 2 * place + 2])
        made = ((row.variant.in_model_units(drawn[ink]).flatten(1).cpu() - centre) @ directions.mT)[:, pair]
        _dots(axes, real[:, pair], LIGHT)
        _dots(axes, made, ink, 0.5)
        axes.spines[:].set_color(LIGHT)
        axes.set_title(f"{titles[ink]}: components {pair[0] + 1}, {pair[1] + 1}", fontsize=7, pad=3, color=ink)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlim(float(low[pair[0]]), float(high[pair[0]]))
        axes.set_ylim(float(low[pair[1]]), float(high[pair[1]]))
        outside = int(((made < low[list(pair)]) | (made > high[list(pair)])).any(1).sum())
        _say_outside(axes, outside, float(low[pair[1]]), "right")
