"""study: run the cells that are not finished yet, keep each of them, and return the table of all."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from ..evaluation.features import Features
from ..models.half import whole
from ..progress import Progress
from .cells import Cell
from .executors import Task, run_all
from .folder import StudyFolder
from .table import Study
from .work import DONE, numbers_of

__all__ = ["study"]


def study(
    cells: Sequence[Cell],
    out: str | Path,
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    threads: int = 1,
    progress: bool | str = True,
    replace: bool = False,
) -> Study:
    """Run many fits and their evaluations, and keep each of them.

    Each finished cell has a folder of its own in ``out``, with a JSON file and a checkpoint, which is written whole or
    not at all. If a study is started again, the finished cells are skipped. A cell that was added, or whose
    declaration has changed, is run. A cell that cannot be trained is a row with its reason.

    The numbers of a cell depend on its declaration and on ``threads`` alone. They do not depend on the executor or on
    the order, to the last bit on one machine.

    Args:
        cells: What to run, for example by ``grid``.
        out: The folder of the study. Workers return their results and this process writes them, so that the workers
            need no shared disk.
        executor: Any executor of ``concurrent.futures``, such as dask's ``Client.get_executor()``, or one like it, such
            as that of submitit, whose ``submit`` returns what has ``done()``, ``result()`` and ``cancel()``. A cell
            with a function that a worker cannot import, such as a lambda or a function of ``__main__``, runs in this
            process, with a warning.
        jobs: The number of local processes, where there is no executor. They import the script again, so that the study
            must stand under ``if __name__ == "__main__":``.
        threads: The number of threads of each cell.
        progress: Whether to show how many cells are done and the time left. A string is used as the label.
        replace: Whether ``out`` may be a folder that holds something else.

    Returns:
        The table of all cells, with summaries; see ``Study``.

    Raises:
        ValueError: If there are no cells, two cells have the same name, cells under one name cannot be compared, or the
            folder cannot be used.
        KeyboardInterrupt: If the study is interrupted. At most the running cells are lost.

    Example:
        >>> import tempfile, torch
        >>> from ppl_vae import prepare
        >>> from ppl_vae.studies import grid, study
        >>> cells = grid(["sigma_vae", "rae"], prepare(torch.randn(60, 3)), 2, z_dim=2, epochs=1)
        >>> found = study(cells, tempfile.mkdtemp(), progress=False)
        >>> found.frame[["variant", "seed"]].values.tolist()
        [['sigma_vae', 0], ['rae', 0], ['sigma_vae', 1], ['rae', 1]]
    """
    cells = list(cells)
    _check(cells, executor, jobs, threads)
    keys = {cell.key: cell for cell in reversed(cells)}  # contestants that are declared alike are run once
    folder = StudyFolder(out, replace=replace)
    folder.declare(cells)
    done = folder.finished(keys)
    missing = [cell for cell in cells if keys[cell.key] is cell and cell.key not in done]
    tasks = _tasks(missing, folder, threads)
    label = progress if isinstance(progress, str) else "study"
    with Progress(label, max(1, len(missing)), shown=bool(progress and missing), unit="cell") as bar:
        outcomes = run_all(tasks, jobs, executor)
        try:
            for count, (cell, finished) in enumerate(outcomes, 1):
                folder.write(cell, finished)
                bar.advance(count, f"{cell.label}  {_said(finished.record)}")
        finally:
            outcomes.close()  # stops the local processes when this one is interrupted
    return Study.of(folder, cells)


def _check(cells: Sequence[Cell], executor: Any, jobs: int, threads: int) -> None:
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a study was started by the import of the script in one of its own processes: put it under "
            'if __name__ == "__main__":'
        )
    if not cells:
        raise ValueError("a study needs at least one cell: grid(contestants, data, seeds) makes them")
    for cell in cells:
        if not isinstance(cell, Cell):
            raise ValueError(
                f"a study runs cells, got {type(cell).__name__}: grid(contestants, data, seeds) makes them"
            )
    whole("jobs", jobs)
    whole("threads", threads)
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise ValueError(f"executor must have submit, as those of concurrent.futures, got {type(executor).__name__}")
    labels = [(cell.data.name, cell.name, cell.seed) for cell in cells]
    twice = [cell.label for cell, label in zip(cells, labels, strict=True) if labels.count(label) > 1]
    if twice:
        raise ValueError(f"two cells are called {twice[0]}: give each contestant and each data set its own name")
    _check_comparable(cells)


def _check_comparable(cells: Sequence[Cell]) -> None:
    """Refuse cells under one name that differ in more than the seed, because their mean would mean nothing."""
    known: dict[tuple[str, ...], Any] = {}
    for cell in cells:
        declaration = {name: value for name, value in cell.declaration.items() if name != "seed"}
        data = cell.data.name
        for name, value, what in (
            (("data", data), cell.data.digest, f"two data sets are called {data}: give each its own name"),
            (("judging",), cell.judging, "the cells are judged in different ways: a study has one Judging"),
            (
                ("cell", data, cell.name),
                declaration,
                f"cells of {cell.name} on {data} differ in more than the seed: give each contestant its own name",
            ),
        ):
            if known.setdefault(name, value) != value:
                raise ValueError(what)


def _tasks(cells: Sequence[Cell], folder: StudyFolder, threads: int) -> list[Task]:
    """The cells with what they need to run. Each feature space is made once."""
    spaces: dict[tuple[Any, ...], Features] = {}
    tasks = []
    for cell in cells:
        choice, seed = cell.judging.features, cell.judging.seed
        place = (cell.data.digest, choice, seed)
        if place not in spaces:
            spaces[place] = folder.features(cell.data, choice, seed, threads)
        tasks.append(Task(cell, spaces[place], threads))
    return tasks


def _said(record: dict[str, Any]) -> str:
    """What the progress says of a finished cell."""
    if record["status"] != DONE:
        return f"{record['status']}: {record['reason']}"
    numbers = numbers_of(record, "evaluation")
    name = "bound" if record["has_bound"] else "rmse"
    return f"{name} {numbers[name]}"
