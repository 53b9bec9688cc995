"""The page of a comparison: one file of HTML with the findings, the table, the plots, the samples and the receipts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..data.data_set import Data
from ..evaluation.metrics import COLUMNS, MOST
from ..models.networks import is_image
from ..streams import seeded
from ..studies import Result, Study
from ..studies.declarations import address
from ..studies.table import Row
from ..training.fitting import fit
from ..training.options import FitOptions
from . import plots
from .colours import colours_of
from .pictures import pictures_of
from .table import columns_of, findings, groups_of
from .templates import filled_template

__all__ = ["Plot", "comparison_page"]


class Plot(NamedTuple):
    """A plot with its heading and its caption. The image is a data URI."""

    title: str
    caption: str
    image: str


def comparison_page(study: Study, data: Data, settings: Mapping[str, Any]) -> str:
    """Write the page of a comparison.

    Args:
        study: The table of all fits, whose contestants are shown in this order.
        data: The data that the contestants were compared on.
        settings: The settings of the run. ``command``, ``versions`` and ``features`` are shown at their own places.

    Returns:
        HTML that needs no other file. The same fits give the same page.
    """
    inks = colours_of(list(dict.fromkeys(row.cell.name for row in study.rows)))
    shown = _first_rows(study)
    judged, lost = _restored(shown)
    images = is_image(data.x_shape)
    with seeded(0):
        return filled_template(
            "report/report.html.jinja",
            data=data,
            settings=settings,
            inks=inks,
            seeds=len({row.cell.seed for row in study.rows}),
            findings=findings(study),
            summary=_summary(study, shown, data),
            columns=columns_of(study),
            noise={name: judged[0].evaluation.noise(name) for name in COLUMNS} if judged else {},
            groups=groups_of(study),
            plots=_plots(study, judged, inks) if judged else {},
            pictures=pictures_of(judged, data) if images else None,
            samples=[] if images else [(one.name, plots.table_samples(one)) for one in judged],
            receipts=[(row.cell.name, "\n".join(row.record["receipt"])) for row in shown],
            features=shown[0].record["evaluation"]["features"] if shown else settings.get("features") or "",
            compared=min(len(data.test), len(data.resident), MOST),
            means=images,
            notes=list(dict.fromkeys(note for row in shown for note in row.record["evaluation"]["notes"])),
            lost=lost,
        )


def _first_rows(study: Study) -> list[Row]:
    """The row of each contestant's first seed that has numbers. Pictures, codes and receipts are of these."""
    first: dict[str, Row] = {}
    for row in study.rows:
        if row.is_done:
            first.setdefault(row.cell.name, row)
    return list(first.values())


def _restored(rows: Sequence[Row]) -> tuple[list[Result], list[str]]:
    """The results behind rows, and a sentence for each whose pair cannot be read, so that it has no pictures."""
    found, lost = list[Result](), list[str]()
    for row in rows:
        try:
            result = row.result()
        except ValueError as error:
            lost.append(f"The pair of {row.cell.name} cannot be read: {error}")
            continue
        if isinstance(result, Result):
            found.append(result)
    return found, lost


# What was compared.


def _summary(study: Study, shown: Sequence[Row], data: Data) -> list[str]:
    """Paragraphs on what was compared, how it was trained and how it was judged."""
    paragraphs = [_compared(study, data), *_definitions(study)]
    if shown:
        paragraphs += [_trained(study, shown), _judged(shown)]
    return paragraphs


def _compared(study: Study, data: Data) -> str:
    bounds = sum(row.is_done and row.record["has_bound"] for row in study.rows)
    refused = sum(not row.is_done for row in study.rows)
    counts = {"with a bound of log p(x)": bounds, "with a MAP objective": len(study.rows) - bounds - refused}
    counts["refused or diverged"] = refused
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    shape = " x ".join(map(str, data.x_shape))
    names, seeds = ({getattr(row.cell, part) for row in study.rows} for part in ("name", "seed"))
    return (
        f"{_counted(len(names), 'contestant')} on {data.name} with {_counted(len(seeds), 'seed')}: {kinds}. A datum "
        f"has {shape} numbers. The scale between the data's units x and the model's units y is {data.scale}."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _definitions(study: Study) -> list[str]:
    """One sentence on the contestants that have options, a builder or a training of their own."""
    said: dict[str, str] = {}
    for row in study.rows:
        name, one, options = row.cell.name, row.cell.contestant, row.cell.declaration["options"]
        build = one.build if isinstance(one.build, str) else address(one.build)
        given = ", ".join(f"{option} = {value}" for option, value in options.items())
        trained = "" if one.train is fit else f", trained by {address(one.train)}"
        trained += "".join(f", trained with {word} = {value}" for word, value in one.training.items())
        if name != build or given or trained:
            said[name] = f"{name} is {build}{f' with {given}' if given else ''}{trained}"
    return ["; ".join(said.values()) + "."] if said else []


def _trained(study: Study, shown: Sequence[Row]) -> str:
    run, cell = shown[0].record["settings"], shown[0].cell
    seeds = sorted({row.cell.seed for row in study.rows})
    epochs = cell.training.get("epochs", FitOptions.epochs)
    text = (
        f"Each fit has {cell.z_dim} numbers per code and the same training: Adam, {epochs} epochs in batches of "
        f"{run['batch_size']}, learning rate {run['lr']:g}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    )
    if not _has_held_out(shown):
        return text
    held_out = len(cell.data.train) - run["rows"]  # type: ignore[arg-type]
    chose = f"{held_out} training data that were held back" if held_out else "validation data"
    return f"{text} The best epoch was chosen on {chose}."


def _judged(shown: Sequence[Row]) -> str:
    evaluation, judging = shown[0].record["evaluation"], shown[0].cell.judging
    components = judging.components if isinstance(judging.components, int) else f"by {judging.components}"
    return (
        f"All fits are judged on the same {evaluation['rows']} held-out data, with the same draws. Bounds use K = "
        f"{judging.num_particles} draws per datum. The ex-post density is a mixture of Gaussians on the codes "
        f"(components: {components}). Frechet distances are computed in {evaluation['features']}."
    )


def _has_held_out(rows: Sequence[Row]) -> bool:
    """Whether the objective was computed on held-out data after every epoch."""
    return all(epoch["held_out_loss"] is not None for row in rows for epoch in row.record["history"])


# The plots.


def _plots(study: Study, judged: Sequence[Result], inks: plots.Inks) -> dict[str, list[Plot]]:
    """The plots that do not depend on the kind of data, by section."""
    bounds: dict[str, list[Result]] = {}
    for result in judged:
        if result.has_bound:
            bounds.setdefault(f"Bounds of the log {result.measure}", []).append(result)
    per_datum = Plot(
        "",
        "A box shows the median and the quartiles, and its whiskers show the 5% and 95% quantiles. The diamond shows "
        "the mean. Points are held-out data. Points far to the left are counted, not drawn.",
        plots.bound_per_datum(bounds, inks) if bounds else "",
    )
    training = _training(study, judged, inks)
    return {"training": training, "codes": _codes(judged, inks), "per_datum": [per_datum] if bounds else []}


def _training(study: Study, judged: Sequence[Result], inks: plots.Inks) -> list[Plot]:
    done = [row for row in study.rows if row.is_done]
    shown = [_held_out_objective(done, judged, inks)] if _has_held_out(done) else []
    shown.append(
        Plot(
            "Convergence",
            "One panel per contestant, each with its own axis, in nats per datum against epochs. The coloured curve is "
            "the held-out objective, with a dot at the epoch that was kept. The dashed curve is minus the training "
            "loss. If the KL is weighted or there is a penalty, this is another quantity, with an axis on the right.",
            plots.convergence(judged, inks),
        )
    )
    titles = {"sigma": "sigma, in the model's units", "kl_weight": "weight of the KL"}
    moving = {key: (title, some) for key, title in titles.items() if (some := plots.moved(judged, key))}
    return [*shown, _over_time(judged, moving, inks)] if moving else shown


def _held_out_objective(done: Sequence[Row], judged: Sequence[Result], inks: plots.Inks) -> Plot:
    caption = (
        "Minus the held-out loss after each epoch, on data that were held back for validation, with one line per seed. "
        "Higher is better. Curves can be compared only within a panel of bounds, and MAP objectives cannot be "
        "compared. Each panel has its own axis. The first quarter of a steep curve may lie below the axis."
    )
    curves: dict[str, list[plots.Series]] = {}
    for row in done:
        curves.setdefault(row.cell.name, []).append(plots.series(row.record["history"], "held_out_loss"))
    panels: dict[str, dict[str, list[plots.Series]]] = {}
    for result in sorted(judged, key=lambda result: not result.has_bound):
        panels.setdefault(_objective(result), {})[result.name] = curves[result.name]
    return Plot("Held-out objective", caption, plots.objectives(panels, inks))


def _objective(result: Result) -> str:
    """The kind of a held-out objective: the measure of a bound, or whether a MAP objective has p(z)."""
    if result.has_bound:
        return f"Bounds of the log {result.measure}"
    return f"MAP: {'log p(x, z)' if result.variant.codes_are_scored else 'log p(x | z), p(z) not in the objective'}"


def _over_time(judged: Sequence[Result], moving: Mapping[str, tuple[str, Sequence[Result]]], inks: plots.Inks) -> Plot:
    _, moved = moving.get("kl_weight", ("", ()))
    names = {result.name for result in moved}
    fixed = {result.name: result.variant.kl_weight for result in judged if result.name not in names}
    other = [f"{name} {weight:.4g}" for name, weight in fixed.items() if weight not in (0.0, 1.0)]
    caption = "Only quantities that changed during training are shown."
    if other:
        caption += f" Constant KL weights other than 1: {', '.join(other)}."
    return Plot("Scale and KL weight over time", caption, plots.over_time(moving, inks))


def _codes(judged: Sequence[Result], inks: plots.Inks) -> list[Plot]:
    labelled = ", coloured by label" if judged[0].data.test_labels is not None else ""
    latent_space = Plot(
        "Latent space",
        f"Posterior means of held-out data in the plane of their first two principal components{labelled}. Ellipses "
        "show the components of the ex-post mixture in this plane, at two standard deviations. Components with more "
        "weight are darker. The mixture is fitted on draws from q(z | x), so it is wider than the means where q(z | x) "
        "is wide.",
        plots.latent_space(judged, inks),
    )
    with_units = [result for result in judged if result.evaluation.kl_per_dim]
    if not with_units:
        return [latent_space]
    kl_per_unit = Plot(
        "KL by unit of the code",
        "Mean KL over held-out data of each unit of the code, from large to small, with one axis for all panels. "
        "Active units are filled, the others are hollow. The title gives the number of active units.",
        plots.kl_per_unit(with_units, inks),
    )
    return [latent_space, kl_per_unit]
