"""The page of a comparison: one file of HTML with the table, the plots, the samples and the receipts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..data.data_set import Data
from ..evaluation.metrics import COLUMNS, MOST
from ..models.networks import is_image
from ..streams import seeded
from . import plots
from .pictures import pictures_of
from .results import Refused, Result, by_measure, colour
from .table import groups_of
from .templates import filled_template

__all__ = ["Plot", "comparison_page"]


class Plot(NamedTuple):
    """A plot with its heading and its caption. The image is a data URI."""

    title: str
    caption: str
    image: str


def comparison_page(results: Sequence[Result | Refused], data: Data, settings: Mapping[str, Any]) -> str:
    """Write the page of a comparison.

    Args:
        results: The results of ``compare``, in the order in which they are shown.
        data: The data that the variants were compared on.
        settings: The settings of the run. ``command``, ``versions`` and ``features`` are shown at their own places.

    Returns:
        HTML that needs no other file. The same fits give the same page.
    """
    judged = [result for result in results if isinstance(result, Result)]
    images = is_image(data.x_shape)
    with seeded(0):
        return filled_template(
            "report/report.html.jinja",
            data=data,
            settings=settings,
            summary=_summary(results, judged, data, settings),
            columns=COLUMNS,
            noise={name: judged[0].evaluation.noise(name) for name in COLUMNS} if judged else {},
            groups=groups_of(results),
            plots=_plots(judged) if judged else {},
            pictures=pictures_of(judged, data) if images else None,
            samples=[] if images else [(one.name, colour(one.name), plots.table_samples(one)) for one in judged],
            receipts=[(one.name, colour(one.name), one.fit.receipt()) for one in judged],
            features=judged[0].evaluation.features if judged else settings.get("features", ""),
            compared=min(len(data.test), len(data.resident), MOST),
            means=images,
            notes=list(dict.fromkeys(note for one in judged for note in one.evaluation.notes)),
        )


# The summary.


def _summary(
    results: Sequence[Result | Refused], judged: Sequence[Result], data: Data, settings: Mapping[str, Any]
) -> list[str]:
    """Three paragraphs: what was compared, how it was trained and how it was judged."""
    paragraphs = [_compared(results, judged, data)]
    if judged:
        paragraphs += [_trained(judged, settings), _judged(judged)]
    return paragraphs


def _compared(results: Sequence[Result | Refused], judged: Sequence[Result], data: Data) -> str:
    bounds = sum(result.variant.has_bound for result in judged)
    counts = {"with a bound of log p(x)": bounds, "with a MAP objective": len(judged) - bounds}
    counts["refused or diverged"] = len(results) - len(judged)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    shape = " x ".join(map(str, data.x_shape))
    variants = "1 variant was" if len(results) == 1 else f"{len(results)} variants were"
    return (
        f"{variants} compared on {data.name}: {kinds}. A datum has {shape} numbers. The scale between the data's units "
        f"x and the model's units y is {data.scale}."
    )


def _trained(judged: Sequence[Result], settings: Mapping[str, Any]) -> str:
    run = judged[0].fit.settings
    text = (
        f"All variants have networks of the same size, {judged[0].variant.z_dim} numbers per code and the same "
        f"training: Adam, {settings.get('epochs', run['epochs'])} epochs in batches of {run['batch_size']}, learning "
        f"rate {run['lr']:g}, seed {run['seed']}."
    )
    if not _has_held_out(judged):
        return text
    held_out = len(judged[0].data.train) - run["rows"]  # type: ignore[arg-type]
    chose = f"{held_out} training data that were held back" if held_out else "validation data"
    return f"{text} The best epoch was chosen on {chose}."


def _judged(judged: Sequence[Result]) -> str:
    evaluation = judged[0].evaluation
    sizes = sorted({len(result.mixture.loc) for result in judged})
    components = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    return (
        f"All variants are judged on the same {evaluation.rows} held-out data. Bounds use K = "
        f"{evaluation.num_particles} draws per datum. The ex-post density is a mixture of {components} Gaussians on "
        f"the codes. Frechet distances are computed in {evaluation.features}."
    )


def _has_held_out(judged: Sequence[Result]) -> bool:
    """Whether the objective was computed on held-out data after every epoch."""
    return all(epoch["held_out_loss"] is not None for result in judged for epoch in result.fit.rows)


# The plots.


def _plots(judged: Sequence[Result]) -> dict[str, list[Plot]]:
    """The plots that do not depend on the kind of data, by section."""
    bounds = {title: some for title, some in by_measure(judged).items() if some[0].variant.has_bound}
    per_datum = Plot(
        "",
        "A box shows the median and the quartiles, and its whiskers show the 5% and 95% quantiles. The diamond shows "
        "the mean, which is also in the table. Points are held-out data. Points far to the left are counted, not "
        "drawn.",
        plots.bound_per_datum(bounds) if bounds else "",
    )
    return {"training": _training(judged), "codes": _codes(judged), "per_datum": [per_datum] if bounds else []}


def _training(judged: Sequence[Result]) -> list[Plot]:
    shown = [_held_out_objective(judged)] if _has_held_out(judged) else []
    shown.append(
        Plot(
            "Convergence",
            "One panel per variant, each with its own axis, in nats per datum against epochs. The coloured curve is "
            "the held-out objective, with a dot at the epoch that was kept. The dashed curve is minus the training "
            "loss. If the KL is weighted or there is a penalty, this is another quantity, with an axis on the right.",
            plots.convergence(judged),
        )
    )
    titles = {"sigma": "sigma, in the model's units", "kl_weight": "weight of the KL"}
    moving = {key: (title, some) for key, title in titles.items() if (some := plots.moved(judged, key))}
    return [*shown, _over_time(judged, moving)] if moving else shown


def _held_out_objective(judged: Sequence[Result]) -> Plot:
    caption = (
        "Minus the held-out loss after each epoch, on data that were held back for validation. Higher is better. "
        "Curves can be compared only within a panel of bounds, and MAP objectives cannot be compared. Each panel has "
        "its own axis. The first quarter of a steep curve may lie below the axis."
    )
    return Plot("Held-out objective", caption, plots.objectives(_by_objective(judged)))


def _by_objective(judged: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by the kind of their held-out objective: the measure of a bound, or whether a MAP objective has p(z)."""
    kinds: dict[str, list[Result]] = {}
    for title, some in by_measure(judged).items():
        for result in some:
            scored = "log p(x, z)" if result.variant.codes_are_scored else "log p(x | z), p(z) not in the objective"
            kinds.setdefault(title if result.variant.has_bound else f"MAP: {scored}", []).append(result)
    return kinds


def _over_time(judged: Sequence[Result], moving: Mapping[str, tuple[str, Sequence[Result]]]) -> Plot:
    _, moved = moving.get("kl_weight", ("", ()))
    names = {result.name for result in moved}
    fixed = {result.name: result.variant.kl_weight for result in judged if result.name not in names}
    other = [f"{name} {weight:.4g}" for name, weight in fixed.items() if weight not in (0.0, 1.0)]
    caption = "Only quantities that changed during training are shown."
    if other:
        caption += f" Constant KL weights other than 1: {', '.join(other)}."
    return Plot("Scale and KL weight over time", caption, plots.over_time(moving))


def _codes(judged: Sequence[Result]) -> list[Plot]:
    labelled = ", coloured by label" if judged[0].data.test_labels is not None else ""
    latent_space = Plot(
        "Latent space",
        f"Posterior means of held-out data in the plane of their first two principal components{labelled}. Ellipses "
        "show the components of the ex-post mixture in this plane, at two standard deviations. Components with more "
        "weight are darker. The mixture is fitted on draws from q(z | x), so it is wider than the means where q(z | x) "
        "is wide.",
        plots.latent_space(judged),
    )
    with_units = [result for result in judged if result.evaluation.kl_per_dim]
    if not with_units:
        return [latent_space]
    kl_per_unit = Plot(
        "KL by unit of the code",
        "Mean KL over held-out data of each unit of the code, from large to small, with one axis for all panels. "
        "Active units are filled, the others are hollow. The title gives the number of active units.",
        plots.kl_per_unit(with_units),
    )
    return [latent_space, kl_per_unit]
