"""Run one cell, in any process: build, train and judge a pair, and return the outcome as JSON and tensors."""

import copy
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..checkpoint import load, save as write_checkpoint
from ..contracts import check_support
from ..data.arrays import reason_of
from ..data.data_set import Data
from ..estimate import Number
from ..evaluation import ex_post
from ..evaluation.evaluation import Evaluation, evaluate
from ..evaluation.features import Features
from ..models import Mixture
from ..streams import seeded
from ..training.fitting import Fit
from ..variant import Variant
from .cells import Cell
from .results import Refused, Result

__all__ = [
    "DONE",
    "FAILED",
    "REFUSED",
    "Finished",
    "built",
    "evaluation_of",
    "numbers_of",
    "restored",
    "run_cell",
    "threads_of",
]

DONE, REFUSED, FAILED = "done", "refused", "failed"
MIXTURE = "mixture.safetensors"


class Finished(NamedTuple):
    """The outcome of a cell, as a worker returns it.

    Attributes:
        record: The numbers, as plain JSON. ``status`` is ``"done"``; or ``"refused"`` if the pair or the data cannot
            be used or the training diverged, which would happen again; or ``"failed"`` if another error came.
        files: The checkpoint, by file name. It is empty without a result.
    """

    record: dict[str, Any]
    files: dict[str, bytes]


def run_cell(cell: Cell, features: Features, threads: int = 1) -> Finished:
    """Run a cell with a number of threads. No error leaves this function: it becomes the reason in the record.

    Args:
        cell: What to run.
        features: The feature space that ``cell.judging`` names.
        threads: The number of threads. Another number can change the last bits of the figures.
    """
    started = time.perf_counter()
    files: dict[str, bytes] = {}
    try:
        with threads_of(threads):
            result = _result(cell, features)
            found = _of_result(result)
            files = _files(cell, result)
    except (ArithmeticError, ValueError) as error:
        found = {"status": REFUSED, "reason": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a user's own part raises is the reason of its row
        found = {"status": FAILED, "reason": f"{type(error).__name__}: {reason_of(error)}"}
    record = {"key": cell.key, "declaration": cell.declaration, **found, "threads": threads}
    return Finished({**record, "seconds": time.perf_counter() - started}, files)


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Run torch, BLAS and OpenMP on ``count`` threads inside the block."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    try:
        with threadpool_limits(count):
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(before)


def built(cell: Cell) -> Variant:
    """The untrained pair of a cell. It shares no module with the pair of another cell."""
    contestant = cell.contestant
    builder, options = copy.deepcopy((contestant.builder, dict(contestant.options)))
    if contestant.takes_seed:
        options["seed"] = cell.seed
    with seeded(cell.seed):
        return builder(cell.data.x_shape, cell.z_dim, **options)


def _result(cell: Cell, features: Features) -> Result:
    """Build, train and judge the pair of a cell.

    If the likelihood is binary and the data are grey values in [0, 1], the pair is trained on fresh Bernoulli draws of
    them.
    """
    variant, judging = built(cell), cell.judging
    data = _suited(variant, cell.data, judging.seed)
    check_support(variant, data.scale(data.test))
    trained = cell.contestant.train(variant, data, seed=cell.seed, progress=False, **cell.training)
    variant = trained.variant
    mixture = ex_post.fit(variant, data, judging.components, judging.seed)
    evaluation = evaluate(
        variant,
        data,
        judging.num_particles,
        train=data.resident,
        ex_post=mixture,
        features=features,
        seed=judging.seed,
    )
    result = Result(cell.name, trained, mixture, evaluation, cell.seed)
    if cell.contestant.extra is None:
        return result
    with seeded(judging.seed):
        return replace(result, extra=dict(cell.contestant.extra(result, features)))


def _suited(variant: Variant, data: Data, seed: int) -> Data:
    """The data, or Bernoulli draws of them if the data are grey values in [0, 1] and only the draws are supported."""
    y = data.scale(data.test)
    grey = bool(((y >= 0) & (y <= 1)).all()) and isinstance(data.train, Tensor)
    if not grey or _supports(variant, y):
        return data
    drawn = data.binarized("dynamic", seed)
    return drawn if _supports(variant, drawn.test) else data


def _supports(variant: Variant, y: Tensor) -> bool:
    """Whether y, in the model's units, lies in the support of the likelihood."""
    try:
        check_support(variant, y)
    except ValueError:
        return False
    return True


# From a result to JSON and tensors, and back.


def _of_result(result: Result) -> dict[str, Any]:
    """The numbers of a result as plain JSON. A number that is not finite is a text."""
    found = {
        "status": DONE,
        "reason": "",
        "measure": result.measure,
        "has_bound": result.has_bound,
        "note": result.data.note,
        "best_epoch": result.fit.best_epoch,
        "settings": result.fit.settings,
        "evaluation": {**vars(result.evaluation)},
        "extra": {**result.extra},
        "receipt": result.fit.receipt().splitlines(),
        "history": result.fit.rows,
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _plain(value: Any) -> Any:
    """A value with texts in the place of infinities and NaN, which JSON lacks."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _files(cell: Cell, result: Result) -> dict[str, bytes]:
    """The checkpoint of a result, and its mixture, by file name."""
    notes = {"data": result.data.origin, "fit": result.fit.settings, "seed": cell.seed, "name": cell.name}
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder) / "checkpoint", result.variant, notes)
        files = {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in result.mixture.state_dict().items()}
    return files | {MIXTURE: save(tensors)}


def numbers_of(record: Mapping[str, Any], part: str) -> dict[str, Number]:
    """The numbers of a part of a record, ``"evaluation"`` or ``"extra"``, by name."""
    found = record[part]["numbers"] if part == "evaluation" else record[part]
    return {name: Number(_read(value), _read(error), reason) for name, (value, error, reason) in found.items()}


def _read(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def evaluation_of(record: Mapping[str, Any]) -> Evaluation:
    """The evaluation in a record."""
    found = {**record["evaluation"], "numbers": numbers_of(record, "evaluation")}
    found["bound_per_datum"] = [float(value) for value in found["bound_per_datum"]]
    found["kl_per_dim"] = [float(value) for value in found["kl_per_dim"]]
    return Evaluation(**found)


def restored(cell: Cell, record: Mapping[str, Any], folder: Path) -> Result | Refused:
    """The outcome of a cell from its record and its checkpoint.

    Args:
        cell: The cell, which builds a pair of your own again.
        record: Its record.
        folder: The folder of its checkpoint.

    Raises:
        ValueError: If the checkpoint is damaged.
    """
    if record["status"] != DONE:
        return Refused(cell.name, cell.data, record["reason"], cell.seed)
    variant = _loaded(cell, folder)
    data = _suited(variant, cell.data, cell.judging.seed)
    fit = Fit(variant, data, list(record["history"]), record["best_epoch"], dict(record["settings"]))
    state = load_file(folder / MIXTURE)
    mixture = Mixture(state["loc"].shape[1], len(state["loc"])).to(state["loc"])
    mixture.load_state_dict(state)
    mixture.requires_grad_(requires_grad=False)
    return Result(cell.name, fit, mixture, evaluation_of(record), cell.seed, numbers_of(record, "extra"))


def _loaded(cell: Cell, folder: Path) -> Variant:
    """The pair in a checkpoint. A pair with parts of your own is built again, and the checkpoint is read into it.

    Raises:
        ValueError: If the training returned another pair than the one that the cell builds, with parts of its own.
    """
    try:
        return load(folder)
    except ValueError as error:
        if "into=" not in str(error):
            raise
        return load(folder, into=built(cell))
