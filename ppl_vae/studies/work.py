"""Run one cell, in any process: build, train and judge a pair, and return the outcome as JSON and tensors."""

import copy
import hashlib
import json
import math
import numbers
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..checkpoint import load, recipe_of, save as write_checkpoint
from ..contracts import check_support
from ..data.arrays import reason_of
from ..data.data_set import Data
from ..estimate import Number
from ..evaluation import ex_post
from ..evaluation.evaluation import Evaluation, evaluate
from ..evaluation.features import Features
from ..evaluation.metrics import COLUMNS
from ..models import Mixture
from ..models.likelihoods import is_nominal
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
    "digests_of",
    "evaluation_of",
    "numbers_of",
    "restored",
    "run_cell",
    "threads_of",
]

DONE, REFUSED, FAILED = "done", "refused", "failed"
MIXTURE = "mixture.safetensors"
TURN = threading.RLock()  # random streams, the default dtype and the number of threads belong to the whole process


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

    Cells run one after another in a process, also where an executor has threads. What the cell changes in the process,
    such as random streams, Pyro's parameter store and the default dtype, is put back.

    Args:
        cell: What to run.
        features: The feature space that ``cell.judging`` names.
        threads: The number of threads. Another number can change the last bits of the figures.
    """
    started = time.perf_counter()
    files: dict[str, bytes] = {}
    try:
        with TURN, _own_state(cell), threads_of(threads):
            result = _result(cell, features)
            found = _of_result(result)
            json.dumps(found, allow_nan=False)  # before the cell counts as done
            files = _files(cell, result)
    except (ArithmeticError, ValueError) as error:
        found = {"status": REFUSED, "reason": reason_of(error)}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - what a user's own part raises is the reason of its row
        found = {"status": FAILED, "reason": f"{type(error).__name__}: {reason_of(error)}"}
    record = {"key": cell.key, "declaration": cell.declaration, **found, "threads": threads}
    return Finished({**record, "seconds": time.perf_counter() - started}, files)


@contextmanager
def _own_state(cell: Cell) -> Iterator[None]:
    """The random streams, the default dtype and the parameter store of a cell. The earlier ones come back after it.

    The dtype is the one that was declared, because another process starts with torch's own.
    """
    before = torch.get_default_dtype()
    with pyro.get_param_store().scope(), seeded(cell.seed):
        try:
            torch.set_default_dtype(getattr(torch, cell.declaration["dtype"]))  # noqa: TID251 - put back below
            yield
        finally:
            torch.set_default_dtype(before)  # noqa: TID251


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
    """The untrained pair of a cell. Its options are copies, so that no other cell trains them too."""
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
    if not isinstance(cell.contestant.build, str):
        _refuse_shared(variant, built(cell))
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
        return replace(result, extra=_checked(cell.contestant.extra(result, features)))


def _refuse_shared(variant: Variant, again: Variant) -> None:
    """Refuse a builder that returns the same parameters twice: a cell would start from the weights of another one."""
    first, second = ({id(one): name for name, one in _learned(each)} for each in (variant, again))
    shared = [name for place, name in first.items() if place in second]
    if shared:
        raise ValueError(f"the builder returns the same {shared[0]} every time: make every module inside the builder")


def _learned(variant: Variant) -> Iterator[tuple[str, Tensor]]:
    for half in variant[:2]:
        yield from ((name, one) for name, one in half.named_parameters() if one.requires_grad)


def _checked(extra: Mapping[str, Any]) -> dict[str, Number]:
    """The further numbers of the author of a study.

    Raises:
        TypeError: If one is no number, or has the name of a column.
    """
    found = {}
    for name, one in extra.items():
        number = one if isinstance(one, Number) else Number(one)
        if name in COLUMNS:
            raise TypeError(f"extra has a number called {name!r}, which is a column already: give it another name")
        if not all(part is None or isinstance(part, numbers.Real) for part in number[:2]):
            raise TypeError(f"extra[{name!r}] must be a Number or a float, got {one!r}")
        value, error = (None if part is None else float(part) for part in number[:2])
        if value is not None and not math.isfinite(value):
            value, error, number = None, None, number._replace(reason=f"not finite: {value}")
        found[str(name)] = Number(value, error, number.reason)
    return found


def _suited(variant: Variant, data: Data, seed: int) -> Data:
    """The data, or Bernoulli draws of them if the data are grey values in [0, 1] and only the draws are supported."""
    y = data.scale(data.test)
    grey = bool(((y >= 0) & (y <= 1)).all()) and isinstance(data.train, Tensor)
    if not grey or is_nominal(variant.noise) or _supports(variant, y):
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


def digests_of(files: Mapping[str, bytes]) -> dict[str, tuple[int, str]]:
    """The size and the SHA-256 of each file, by its name. They are kept in the record, which shows a damaged file."""
    return {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}


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
    _refuse_damaged(record, folder)
    variant = _loaded(cell, folder)
    data = _suited(variant, cell.data, cell.judging.seed)
    history = [
        {name: _read(value) for name, value in row.items()} | {"epoch": row["epoch"]} for row in record["history"]
    ]
    fit = Fit(variant, data, history, record["best_epoch"], dict(record["settings"]))
    state = load_file(folder / MIXTURE)
    mixture = Mixture(state["loc"].shape[1], len(state["loc"])).to(state["loc"])
    mixture.load_state_dict(state)
    mixture.requires_grad_(requires_grad=False)
    return Result(cell.name, fit, mixture, evaluation_of(record), cell.seed, numbers_of(record, "extra"))


def _refuse_damaged(record: Mapping[str, Any], folder: Path) -> None:
    for name, (size, digest) in record["files"].items():
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        if (size, digest) != digests_of({name: content})[name]:
            raise ValueError(f"{path} is damaged or missing: delete {folder}, and the study runs this cell again")


def _loaded(cell: Cell, folder: Path) -> Variant:
    """The pair in a checkpoint.

    A pair of your own builder is built again, and the checkpoint is read into it. If the training returned another pair
    than that, the checkpoint builds it from its recipe.

    Raises:
        ValueError: If the training returned another pair, with parts of its own.
    """
    if isinstance(cell.contestant.build, str) and not recipe_of(folder).get("parts", ["all"]):
        return load(folder)
    with _own_state(cell):
        fresh = built(cell)
    if json.loads(json.dumps(fresh.model.recipe or {})) == recipe_of(folder):
        return load(folder, into=fresh)
    return load(folder)
