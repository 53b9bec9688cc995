"""compare: train contestants on one data set, judge them on the same held-out data, and write a report."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from ..data.data_set import Data
from ..files import write_text
from ..progress import say
from ..studies import Cell, Judging, Study, grid, study
from ..studies.cells import Z_DIM, Contestants
from ..studies.folder import StudyFolder
from ..studies.table import versions
from ..studies.work import built
from .contestants import contestants_of
from .document import comparison_page

__all__ = ["compare"]


def compare(
    contestants: Contestants,
    data: Data,
    out: str | Path,
    *,
    seeds: int | Iterable[int] = 1,
    jobs: int = 1,
    executor: Executor | None = None,
    threads: int = 1,
    z_dim: int = Z_DIM,
    components: int | str = Judging.components,
    num_particles: int = Judging.num_particles,
    features: str | None = Judging.features,
    estimator: str | None = None,
    options: Mapping[str, Any] | None = None,
    replace: bool = False,
    progress: bool = True,
    command: str = "",
    **training: Any,
) -> Study:
    """Train and judge contestants on one data set, with the same optimizer, epochs and seeds for all.

    It is a study with one data set: every fit is kept, so that the same call goes on where an earlier one stopped. The
    folder gets ``table.csv``, ``table.json`` and ``report.html``, and a checkpoint per contestant and seed in
    ``cells/DATA-NAME-SEED-*``.

    Args:
        contestants: The names of variants; or a table from the name of a contestant to the name of a variant, to a
            builder ``(x_shape, z_dim) -> Variant`` of your own, or to a ``Contestant``.
        data: The data, as ``prepare`` returns them.
        out: The folder of the comparison.
        seeds: The seeds of the training, or their number. The first one is also the seed of the judging, whose draws
            are the same for all.
        jobs: The number of local processes, where there is no executor. They import the script that calls, so that the
            call has to stand below ``if __name__ == "__main__":``.
        executor: An executor of ``concurrent.futures`` to train on; see ``study``.
        threads: The number of threads of each fit.
        z_dim: Size of a code.
        components: Number of components of the ex-post mixture, ``"held_out"`` or ``"bic"``.
        num_particles: Draws K of the bounds.
        features: ``"pca"``, ``"classifier"``, ``"inception"`` or an ONNX file. By default it depends on the data.
        estimator: Estimator of the bound for all contestants, such as ``"dreg:num_particles=16"``. By default every
            contestant has its own.
        options: Options by name, such as ``{"beta": 2}`` for the contestants that have it, or ``{"NAME.beta": 2}`` for
            one contestant or variant.
        replace: Whether ``out`` may be a folder that holds something else.
        progress: Whether to show how many fits are done and the time left.
        command: The command that was typed, for the report.
        training: Arguments of ``fit``.

    Returns:
        The table of all fits, with a row per contestant and seed, and rankings; see ``Study``. A contestant that could
        not be trained or judged is a row with the reason.

    Raises:
        ValueError: If a name, an option or a value is unknown, or the folder cannot be used. Nothing is trained then.
        KeyboardInterrupt: If it is interrupted. The message says how many fits are done.

    Example:
        >>> import tempfile, torch
        >>> from ppl_vae import compare, prepare
        >>> data = prepare(torch.randn(60, 3))
        >>> found = compare(["sigma_vae", "iwae"], data, tempfile.mkdtemp(), z_dim=2, components=2, epochs=1,
        ...                 progress=False)
        >>> print(found.sentences()[0])
        One seed is no ranking: ...
    """
    chosen = contestants_of(contestants, options, estimator)
    seeds = _seeds(seeds, training)
    judging = Judging(components, num_particles, features, seeds[0])
    cells = grid(chosen, data, seeds, z_dim=z_dim, judging=judging, **training)
    _check_builds(cells[: len(chosen)])
    _say_done(StudyFolder(out, replace=replace), cells, shown=progress)
    label = "compare" if progress else False
    try:
        found = study(cells, out, executor=executor, jobs=jobs, threads=threads, progress=label, replace=replace)
    except KeyboardInterrupt as stop:
        done = len(_finished(StudyFolder(out, replace=True), cells))
        raise type(stop)(f"stopped with {done} of {len(cells)} fits done; the same call goes on") from None
    settings: dict[str, Any] = {"z_dim": z_dim, "components": components, "K": num_particles, "features": features}
    settings |= {"seeds": seeds, "threads": threads, **training}
    settings |= {} if estimator is None else {"estimator": estimator}
    settings |= {"options": dict(options)} if options else {}
    settings |= {"command": command, "versions": versions(), "data": data.name, "scale": repr(data.scale)}
    write_text(found.path / "table.csv", found.as_csv())
    write_text(found.path / "table.json", found.as_json(settings))
    write_text(found.path / "report.html", comparison_page(found, data, settings))
    return found


def _seeds(seeds: int | Iterable[int], training: Mapping[str, Any]) -> list[int]:
    if "seed" in training:
        raise ValueError(f"compare takes seeds, not seed={training['seed']!r}: for that seed alone, seeds=[...]")
    found = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not found:
        raise ValueError(f"seeds must be a number of at least 1 or a list of seeds, got {seeds!r}")
    return found


def _check_builds(cells: Sequence[Cell]) -> None:
    """Build the pair of each cell once, so that an option that cannot be used is refused before any training."""
    for cell in cells:
        try:
            built(cell)
        except TypeError as error:
            raise ValueError(f"{cell.name} cannot be built: {error}") from None


def _finished(folder: StudyFolder, cells: Sequence[Cell]) -> list[Cell]:
    done = folder.finished({cell.key for cell in cells})
    return [cell for cell in cells if cell.key in done]


def _say_done(folder: StudyFolder, cells: Sequence[Cell], *, shown: bool) -> None:
    """Say how many fits an earlier call has done."""
    done = len(_finished(folder, cells))
    if shown and done == len(cells):
        say(f"compare: all {done} fits are done, and nothing is trained again")
    elif shown and done:
        say(f"compare: {done} of {len(cells)} fits are done, and the others are run")
