"""Studies: what is run, what is kept, what is compared, and what is said of it."""

import copy
import dataclasses
import enum
import functools
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.stats
import study_parts as parts
import torch
from torch import Tensor, nn

from ppl_vae import VARIANTS, Data, pair, prepare
from ppl_vae.estimate import p_value
from ppl_vae.files import whole_folder
from ppl_vae.models import StudentT
from ppl_vae.streams import seeded
from ppl_vae.studies import Cell, Claim, Contestant, Judging, Refused, Result, Study, grid, judged, ranked, study
from ppl_vae.studies.declarations import declared, key_of
from ppl_vae.studies.summary import Measured, holm
from ppl_vae.studies.work import built

JUDGING = Judging(components=1, num_particles=2)
ROOT = Path(__file__).resolve().parents[1]


def table(name: str = "table", rows: int = 60, seed: int = 0) -> Data:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return dataclasses.replace(prepare(x), name=name)


def cells_of(contestants: Any, seeds: Any = 1, data: Any = None, judging: Judging = JUDGING, **training: Any) -> Any:
    training = {"epochs": 1, **training}
    return grid(contestants, table() if data is None else data, seeds, z_dim=2, judging=judging, **training)


def run(cells: Any, out: Path, **options: Any) -> Study:
    return study(cells, out, progress=False, **options)


def reason_of(contestant: Contestant, out: Path, **options: Any) -> tuple[str, str]:
    """The status and the reason of a single cell."""
    row = run(cells_of({"one": contestant}), out, **options).rows[0]
    return row.record["status"], row.reason


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(result: Any) -> list[Tensor]:
    return [tensor for half in result.variant[:2] for tensor in half.state_dict().values()]


def counting(log: Path, train: Any = parts.counted, **options: Any) -> dict[str, Any]:
    """A contestant whose trainings are counted in a file."""
    return {"one": Contestant("sigma_vae", train=functools.partial(train, log=str(log)), **options)}


def count(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


# What is run, and what is not run again.


def test_a_finished_cell_is_not_run_again_and_a_changed_one_is(tmp_path: Path) -> None:
    """The training that is counted diverges, because a cell that is refused is finished too, and takes no time."""
    out, log, counted = tmp_path / "out", tmp_path / "log", functools.partial(counting, train=parts.refusing)
    first = run(cells_of(counted(log), 2), out)
    before = files(out / "cells")
    assert count(log) == 2
    assert run(cells_of(counted(log), 2), out).as_csv() == first.as_csv()
    assert count(log) == 2
    assert files(out / "cells") == before

    changed = [
        cells_of(counted(log, options={"width": 5})),
        cells_of(counted(log, version=2)),
        cells_of(counted(log), data=table(seed=1)),
        cells_of(counted(log), [7]),
        cells_of(counted(log), judging=Judging(components=1, num_particles=3)),
        cells_of(counted(log), judging=Judging(components=1, num_particles=2, seed=1)),
        cells_of(counted(log), lr=1e-4),
        cells_of(counted(log, extra=parts.far)),
    ]
    for number, cells in enumerate(changed, 3):
        run(cells, out)
        assert count(log) == number
    assert before.items() <= files(out / "cells").items()  # nothing that was finished before is lost
    assert run(cells_of(counted(log), 2), out).as_csv() == first.as_csv()
    assert count(log) == 2 + len(changed)


def test_a_renamed_contestant_is_not_run_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    contestant = counting(log)["one"]
    run(cells_of({"one": contestant}), tmp_path / "out")
    found = run(cells_of({"other": contestant}), tmp_path / "out")
    assert count(log) == 1
    assert found.frame["variant"].tolist() == ["other"]


def test_the_order_of_the_cells_changes_no_number(tmp_path: Path) -> None:
    cells = cells_of(["sigma_vae", "rae"], 2)
    one, other = run(cells, tmp_path / "a"), run(cells[::-1], tmp_path / "b")
    assert sorted(one.as_csv().splitlines()) == sorted(other.as_csv().splitlines())


def test_seeds_move_the_weights_and_neither_the_test_set_nor_the_evaluation(tmp_path: Path) -> None:
    one, two = run(cells_of(["sigma_vae"], 2), tmp_path / "a").results(0), None
    two = run(cells_of(["sigma_vae"], 2), tmp_path / "a").results(1)
    assert not any(torch.equal(a, b) for a, b in zip(weights(one[0]), weights(two[0]), strict=True) if a.ndim == 2)
    assert torch.equal(one[0].data.test, two[0].data.test)
    same = run(cells_of({"one": Contestant("sigma_vae", train=parts.untrained)}, 2), tmp_path / "b")
    first, second = (row.record["evaluation"] for row in same.rows)
    assert first == second


def test_a_seed_moves_the_initial_weights() -> None:
    first, again, other = (built(cells_of(["rae"], [seed])[0]).guide.heads[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_builder_with_an_argument_seed_is_given_the_seed_of_the_cell(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(cells_of({"one": Contestant(parts.seen_seed, {"log": str(log)})}, [3, 5]), tmp_path / "out")
    assert set(log.read_text().split()) == {"3", "5"}


def test_a_part_that_cells_share_carries_no_weights_between_them(tmp_path: Path) -> None:
    part = StudentT()
    before = copy.deepcopy(part.state_dict())
    contestants = {
        "first": Contestant("sigma_vae", {"likelihood": part}),
        "second": Contestant(functools.partial(parts.plain, likelihood=part)),
    }
    both = run(cells_of(contestants, epochs=3, lr=0.1), tmp_path / "both")
    assert all(torch.equal(tensor, before[name]) for name, tensor in part.state_dict().items())
    assert both.rows[0].record["evaluation"] == both.rows[1].record["evaluation"]
    moved = both.rows[0].result()
    assert isinstance(moved, Result)
    after = moved.variant.model.likelihood.state_dict()
    assert not all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_builder_that_returns_the_same_module_twice_is_refused(tmp_path: Path) -> None:
    status, reason = reason_of(Contestant(parts.sharing), tmp_path)
    assert status == "refused"
    assert reason == "the builder returns the same encoder.0.weight every time: make every module inside the builder"
    part = StudentT()
    status, reason = reason_of(Contestant(lambda x_shape, z_dim: pair(x_shape, z_dim, likelihood=part)), tmp_path)
    assert (status, "every time" in reason) == ("refused", True)


def test_a_cell_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    with pyro.get_param_store().scope():
        pyro.param("yours", torch.ones(()))
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        threads, cells = torch.get_num_threads(), cells_of({"sloppy": Contestant(parts.sloppy), "rae": "rae"})
        found = run(cells, tmp_path / "both", threads=2)
        assert torch.get_default_dtype() is torch.float64
        assert torch.get_num_threads() == threads
        assert list(pyro.get_param_store()) == ["yours"]
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
        assert random.getstate() == before[2]
    assert [row.record["status"] for row in found.rows] == ["done", "done"]
    alone = run(cells_of(["rae"]), tmp_path / "alone", threads=2)
    assert alone.as_csv().splitlines()[-1] == found.as_csv().splitlines()[-1]


def test_the_default_dtype_is_declared_and_kept(tmp_path: Path) -> None:
    double = cells_of(["sigma_vae"])
    keys = {double[0].key}
    torch.set_default_dtype(torch.float32)
    single = cells_of(["sigma_vae"])
    keys.add(single[0].key)
    assert len(keys) == 2
    torch.set_default_dtype(torch.float64)
    result = run(single, tmp_path).results()[0]
    assert isinstance(result, Result)
    assert {parameter.dtype for parameter in result.variant.model.parameters()} == {torch.float32}


def test_an_executor_with_threads_gives_the_same_numbers(tmp_path: Path) -> None:
    """Random streams belong to the whole process, so that two cells must not run in it at once."""
    cells = cells_of(["sigma_vae", "rae"], 2)
    here = run(cells, tmp_path / "here")
    with ThreadPoolExecutor(4) as executor:
        assert run(cells, tmp_path / "there", executor=executor).as_csv() == here.as_csv()


class Jobs:
    """An executor that is not of concurrent.futures, like that of submitit: its jobs can only be asked."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken, self.submitted, self.cancelled = broken, 0, 0

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.broken:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self.submitted += 1
        outer = self

        class Job:
            def done(self) -> bool:
                return True

            def result(self) -> Any:
                return function(*arguments)

            def cancel(self) -> None:
                outer.cancelled += 1

        return Job()


def test_an_executor_like_submitits_is_asked_for_its_jobs(tmp_path: Path) -> None:
    cells, jobs = cells_of(["sigma_vae"], 2), Jobs()
    here = run(cells, tmp_path / "here")
    assert run(cells, tmp_path / "there", executor=jobs).as_csv() == here.as_csv()  # type: ignore[arg-type]
    assert jobs.submitted == 2


def test_an_executor_that_takes_nothing_gives_rows_with_a_reason_which_are_tried_again(tmp_path: Path) -> None:
    cells = cells_of(["sigma_vae"], 2)
    found = run(cells, tmp_path, executor=Jobs(broken=True))  # type: ignore[arg-type]
    assert {row.reason for row in found.rows} == {
        "the executor did not take it: RuntimeError: cannot schedule new futures after shutdown"
    }
    assert not any(row.reason for row in run(cells, tmp_path).rows)


def test_an_interrupt_cancels_what_has_not_started_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppl_vae.studies.folder import StudyFolder

    cells, jobs, write = cells_of(["sigma_vae"], 3), Jobs(), StudyFolder.write
    written: list[Path] = []

    def interrupted(folder: StudyFolder, cell: Cell, finished: Any) -> Path:
        if written:
            raise KeyboardInterrupt
        written.append(write(folder, cell, finished))
        return written[0]

    with monkeypatch.context() as patch:
        patch.setattr(StudyFolder, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(cells, tmp_path, executor=jobs)  # type: ignore[arg-type]
    assert jobs.cancelled == 1  # the second was at hand
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [written[0].name]
    again = Jobs()
    run(cells, tmp_path, executor=again)  # type: ignore[arg-type]
    assert again.submitted == 2


def test_a_cell_that_cannot_be_sent_runs_here_with_a_warning(tmp_path: Path) -> None:
    class Local(StudentT):
        pass

    jobs = Jobs()
    contestants = {
        "lambda": Contestant(lambda x_shape, z_dim: parts.plain(x_shape, z_dim)),
        "schedule": "sigma_vae",
        "class": Contestant("sigma_vae", {"likelihood": Local()}),
        "nested": Contestant(functools.partial(parts.plain, likelihood=Local())),
    }
    cells = cells_of(contestants, schedule=lambda done: 1.0 - done) + cells_of({"sent": "sigma_vae"})
    with pytest.warns(UserWarning, match=r"4 of 5 cells run in the process of the study.*table-lambda-0 for example"):
        found = run(cells, tmp_path, executor=jobs)  # type: ignore[arg-type]
    assert [row.reason for row in found.rows] == [""] * 5
    assert jobs.submitted == 1


# Failures.


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("value", "refused", "ValueError"),
        ("lines", "refused", "first"),
        ("key", "failed", "KeyError: KeyError"),
        ("memory", "failed", "MemoryError: MemoryError"),
        ("exit", "failed", "SystemExit: no more"),
    ],
)
def test_a_builder_that_raises_is_a_row_with_one_line(tmp_path: Path, kind: str, status: str, reason: str) -> None:
    assert reason_of(Contestant(parts.raising, {"kind": kind}), tmp_path) == (status, reason)


def test_a_diverging_cell_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    contestants = {"bad": Contestant("sigma_vae", train=parts.diverging), "good": "sigma_vae"}
    found = run(cells_of(contestants, 2), tmp_path)
    assert [row.record["status"] for row in found.rows] == ["refused", "done"] * 2
    assert found.rows[0].reason == "step 3: log p of site 'x' is nan"
    assert found.ranking() == []
    assert isinstance(found.results()[0], Refused)
    assert found.frame["reason"].isna().tolist() == [False, True] * 2


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (parts.shadowing, "TypeError: extra has a number called 'bound', which is a column already"),
        (parts.single_precision_number, "TypeError: extra['half'] must be a Number or a float"),
    ],
)
def test_an_extra_number_must_be_a_number_with_a_name_of_its_own(tmp_path: Path, extra: Any, reason: str) -> None:
    status, found = reason_of(Contestant("sigma_vae", extra=extra), tmp_path)
    assert (status, found.startswith(reason)) == ("failed", True)


def test_an_extra_number_that_is_not_finite_is_no_number(tmp_path: Path) -> None:
    contestants = {
        name: Contestant("sigma_vae", {"width": 4 + i}, extra=parts.not_finite) for i, name in enumerate("ab")
    }
    found = run(cells_of(contestants, 2), tmp_path)
    assert found.rows[0].details()["empty"]["odd"] == "not finite: nan"
    assert [mean.seeds for mean in found.ranking("odd", up=True)[0].means] == [1, 1]


# What is kept.


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"rows": 12', '"rows": 13'),
        lambda text: text.replace('"status": "done"', '"status": "refused"'),
    ],
)
def test_a_damaged_record_is_run_again(tmp_path: Path, damage: Callable[[str], str]) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    cells = cells_of(counting(log))
    first = run(cells, out)
    path = first.rows[0].folder / "cell.json"
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    assert run(cells, out).as_csv() == first.as_csv()
    assert count(log) == 2


@pytest.mark.parametrize("name", ["variant.safetensors", "variant.json", "mixture.safetensors"])
def test_a_damaged_checkpoint_gives_no_wrong_pair(tmp_path: Path, name: str) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    cells = cells_of(counting(log))
    found = run(cells, out)
    path = found.rows[0].folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        ValueError, match=rf"{name} is damaged or missing: delete .*, and the study runs this cell again"
    ):
        found.results()
    path.write_bytes(content[:-20])
    assert len(run(cells, out).results()) == 1
    assert count(log) == 2
    path.unlink()
    assert len(run(cells, out).results()) == 1
    assert count(log) == 3


def test_a_folder_that_was_not_written_to_its_end_is_not_read(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    cells = cells_of(counting(log))
    folder = run(cells, out).rows[0].folder
    folder.rename(folder.with_name(f".{folder.name}.part"))
    run(cells, out)
    assert count(log) == 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_interrupt_between_two_folders_brings_the_earlier_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whole_folder(tmp_path / "cell") as fresh:
        (fresh / "file").write_text("earlier")
    replace, calls = os.replace, list[Path]()

    def interrupted(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "cell") as fresh:
        (fresh / "file").write_text("later")
    assert files(tmp_path) == {"cell/file": b"earlier"}


@pytest.mark.parametrize("contestant", [Contestant("rae"), Contestant(parts.plain, {"likelihood": parts.Shifted(2.0)})])
def test_a_result_is_read_as_it_was(tmp_path: Path, contestant: Contestant) -> None:
    cell = cells_of({"one": contestant})[0]
    from ppl_vae.evaluation.features import principal_components
    from ppl_vae.studies import work

    with pytest.MonkeyPatch.context() as patch:
        kept = []
        patch.setattr(work, "_of_result", lambda result, old=work._of_result: kept.append(result) or old(result))
        work.run_cell(cell, principal_components(cell.data.train))  # type: ignore[arg-type]
    read = run([cell], tmp_path).results()[0]
    assert isinstance(read, Result)
    assert all(torch.equal(a, b) for a, b in zip(weights(kept[0]), weights(read), strict=True))
    assert str(read.evaluation) == str(kept[0].evaluation)
    assert torch.equal(read.mixture.loc, kept[0].mixture.loc)


def test_a_builder_that_changes_a_pair_of_the_catalogue_is_asked_again(tmp_path: Path) -> None:
    def cut(x_shape: tuple[int, ...], z_dim: int) -> Any:
        variant = parts.plain(x_shape, z_dim)
        variant.model.likelihood.mark = "cut"  # the recipe does not know
        return variant

    result = run(cells_of({"cut": Contestant(cut)}), tmp_path).results()[0]
    assert isinstance(result, Result)
    assert result.variant.model.likelihood.mark == "cut"


ODD = [
    "a/b",
    "..",
    ".",
    "/etc/x",
    "a_b",
    "A_B",
    "ÆØÅ中" * 60,
    "x" * 400,
    "",
    "-",
    "tab\there",
    "a\nb",
    "nul",
    "é" * 300,
]


def test_odd_names_are_names(tmp_path: Path) -> None:
    out = tmp_path / "inside" / "out"
    contestants = {name: Contestant("sigma_vae", version=i, train=parts.diverging) for i, name in enumerate(ODD)}
    cells = cells_of(contestants, data=table("../da/ta"))
    found = run(cells, out)
    assert found.frame["variant"].tolist() == ODD
    assert len({row.folder for row in found.rows}) == len(ODD)
    assert sorted(path.name for path in tmp_path.rglob("cell.json")) == ["cell.json"] * len(ODD)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["cells", "study.json"]


def test_a_folder_of_a_person_is_left_alone(tmp_path: Path) -> None:
    cells = cells_of(["sigma_vae"])
    for name in ("mine.txt", "study.json"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text('{"by": "a person"}')
        with pytest.raises(ValueError, match="holds something else than a study, and is left as it is"):
            run(cells, folder)
        assert files(folder) == {name: b'{"by": "a person"}'}
    with pytest.raises(ValueError, match="it is a file"):
        run(cells, tmp_path / "mine-txt" / "mine.txt")
    run(cells, tmp_path / "mine-txt", replace=True)
    assert (tmp_path / "mine-txt" / "mine.txt").is_file()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_data_of_every_dtype_have_a_digest_of_their_numbers(dtype: torch.dtype) -> None:
    data = dataclasses.replace(table(), train=torch.eye(3, dtype=dtype))
    same, other = (dataclasses.replace(table(), train=factor * torch.eye(3, dtype=dtype)) for factor in (1, 2))

    assert data.digest == same.digest != other.digest
    assert data.digest != dataclasses.replace(table(), train=torch.eye(3, dtype=torch.int32)).digest


# Bad input at the door.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: grid("sigma_vae", table()),
            "contestants must be a list of names or a table, got the text 'sigma_vae'",
        ),
        (lambda: grid(["vae"], table()), "unknown variant 'vae'"),
        (lambda: grid([], table()), "no contestant to compare"),
        (lambda: grid(["rae"], []), "0 data sets"),
        (lambda: grid(["rae"], torch.zeros(4, 3)), "data must be what prepare returns, got Tensor"),
        (lambda: grid(["rae"], [table(), table(seed=1)]), "two data sets have the same name, table"),
        (lambda: grid(["rae"], table(), [0, 0]), "two seeds have the same name, 0"),
        (lambda: grid(["rae"], table(), 0), "0 seeds"),
        (lambda: grid(["rae"], table(), [-1]), "a seed must be a whole number of at least 0, got -1"),
        (lambda: grid(["rae"], table(), [2**32]), "a seed must be below 4,294,967,296"),
        (lambda: grid(["rae"], table(), z_dim=0), "z_dim must be a whole number of at least 1, got 0"),
        (lambda: grid(["rae"], table(), epoch=3), "the training has no argument 'epoch'"),
        (lambda: grid(["rae"], table(), epochs=0), "epochs must be"),
        (lambda: grid(["rae"], table(), progress=True), "progress is no argument of the training of a study"),
        (lambda: Contestant("beta_vae", {"bta": 1.0}), "beta_vae has no option 'bta': wanted one of .*beta"),
        (lambda: Contestant(parts.dying, {"flg": 1}), "dying has no option 'flg': wanted one of flag"),
        (lambda: Contestant(parts.seen_seed, {"seed": 1}), "seed is no option: every cell gives its own"),
        (lambda: Contestant(3), "build must be the name of a variant or a function, got 3"),  # type: ignore[arg-type]
        (lambda: Contestant("rae", train=3), "train must be a function, got 3"),  # type: ignore[arg-type]
        (lambda: Judging(num_particles=0), "num_particles must be a whole number of at least 1, got 0"),
        (lambda: Judging(components="bick"), "components must be a whole number or one of .*'bick'"),
        (lambda: Judging(components=0), "components must be a whole number of at least 1, got 0"),
        (lambda: Judging(seed=-1), "a seed must be"),
    ],
)
def test_bad_input_is_answered_at_the_door(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (list, {}, "a study needs at least one cell"),
        (lambda: [table()], {}, "a study runs cells, got Data"),
        (lambda: cells_of(["rae"]), {"jobs": 0}, "jobs must be a whole number of at least 1, got 0"),
        (lambda: cells_of(["rae"]), {"threads": 1.5}, "threads must be a whole number of at least 1, got 1.5"),
        (lambda: cells_of(["rae"]), {"executor": 2}, "executor must have submit"),
        (lambda: cells_of(["rae"]) * 2, {}, "two cells are called table-rae-0"),
        (
            lambda: cells_of({"a": "rae"}, data=table()) + cells_of({"b": "rae"}, data=table(seed=1)),
            {},
            "two data sets are called table: give each its own name",
        ),
        (
            lambda: cells_of({"a": "rae"}, [0]) + cells_of({"a": "ae"}, [1]),
            {},
            "cells of a on table differ in more than the seed",
        ),
        (
            lambda: cells_of({"a": "rae"}) + cells_of({"b": "rae"}, judging=Judging(1, 3)),
            {},
            "the cells are judged in different ways",
        ),
        (
            lambda: cells_of(["rae"], judging=Judging(1, 2, "classifier")),
            {},
            "features='classifier' needs labels",
        ),
    ],
)
def test_a_study_that_cannot_be_run_trains_nothing(tmp_path: Path, make: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(make(), tmp_path / "out", **options)
    assert not (tmp_path / "out" / "cells").exists()


def test_a_script_without_a_guard_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is still importing the script has this mark."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match='put it under if __name__ == "__main__":'):
        run(cells_of(["rae"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Declarations.


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Recipe:
    width: int
    deep: bool = False


@dataclasses.dataclass(slots=True)
class Tight:
    width: int


def make(beta: float) -> Callable[..., Any]:
    return lambda x_shape, z_dim: VARIANTS["beta_vae"](x_shape, z_dim, beta=beta)


def seeded_linear(seed: int) -> nn.Linear:
    with seeded(seed):
        return nn.Linear(3, 2)


def recurrent() -> nn.LSTM:
    with seeded(0):
        return nn.LSTM(3, 2)


DIFFERENT: dict[str, Callable[[], list[Any]]] = {
    "numbers": lambda: [1, 1.0, 2, True, "1", None],
    "not finite": lambda: [math.nan, math.inf, -math.inf, "nan", "inf"],
    "keys": lambda: [{1: "a"}, {"1": "a"}],
    "sets": lambda: [{"a", "b"}, {"a", "c"}, ["a", "b"]],
    "paths": lambda: [Path("a"), "a", Path("b")],
    "arrays": lambda: [np.ones(2), np.ones(2, np.float32), np.ones((2, 1)), np.zeros(2), torch.ones(2).float()],
    "enums": lambda: [Colour.RED, 1],
    "objects": lambda: [Recipe(1), Recipe(2), Recipe(1, True)],
    "lambdas": lambda: [
        make(1.0),
        make(2.0),
        lambda x: 1,
        lambda x: 2,
        lambda x: x,
        lambda x, y=1: x,
        lambda x, y=2: x,
    ],
    "partials": lambda: [
        functools.partial(parts.stepped, lr=0.1),
        functools.partial(parts.stepped, lr=0.2),
        parts.stepped,
    ],
    "methods": lambda: [Recipe(1).__eq__, Recipe(2).__eq__],
    "parts": lambda: [StudentT(3.0), StudentT(4.0), StudentT(4.0).requires_grad_(False)],
    "own parts": lambda: [parts.Shifted(0.0), parts.Shifted(1.0)],
    "networks": lambda: [
        nn.Sequential(seeded_linear(0), nn.Tanh()),
        nn.Sequential(seeded_linear(0), nn.ReLU()),
        nn.Sequential(seeded_linear(1), nn.Tanh()),
    ],
    "classes": lambda: [StudentT, parts.Shifted],
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_different_values_are_declared_differently_and_equal_ones_alike(kind: str) -> None:
    first, again = ([key_of({"x": declared(value)}) for value in DIFFERENT[kind]()] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)


def test_numbers_of_numpy_are_numbers_and_a_tuple_is_a_list() -> None:
    assert declared([np.float32(0.5), np.int64(3), np.bool_(True), np.float64(2.0)]) == [0.5, 3, True, 2.0]
    assert type(declared(np.int64(3))) is int
    assert declared((1, [2])) == declared([1, (2,)])
    assert declared(recurrent()) == declared(recurrent())
    read_only = np.ones(3)[::-1]
    read_only.flags.writeable = False
    assert declared(read_only) == declared(np.ones(3))
    declared(torch.ones(2, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "value", [object(), Tight(1), (i for i in ()), threading.Lock(), np.array([object()]), 1j, b"x"]
)
def test_what_cannot_be_declared_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be declared") as caught:
        Cell("one", Contestant(parts.plain, {"x": value}), table(), 0).key  # noqa: B018
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_an_option_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="an option refers to itself"):
        Cell("one", Contestant(parts.plain, {"x": endless}), table(), 0).key  # noqa: B018


def test_two_lambdas_of_one_line_are_two_contestants(tmp_path: Path) -> None:
    found = run(cells_of({"small": make(0.1), "large": make(50.0)}, epochs=3, lr=0.05), tmp_path)
    assert found.rows[0].record["evaluation"] != found.rows[1].record["evaluation"]
    assert found.rows[0].folder != found.rows[1].folder


KEY = """
import torch, study_parts as parts
from ppl_vae.studies.declarations import declared, key_of
torch.set_default_dtype(torch.float64)
print(key_of(declared(parts.values())))
"""


@pytest.mark.process
def test_a_key_is_the_same_in_every_process() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    ran = subprocess.run([sys.executable, "-c", KEY], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == key_of(declared(parts.values()))


# The summary.


def measured(differences: Mapping[str, Any], error: float | None = 0.0) -> dict[str, Measured]:
    found = {}
    for name, values in differences.items():
        by_seed = dict(values) if isinstance(values, Mapping) else dict(enumerate(values))
        found[name] = Measured(by_seed, dict.fromkeys(by_seed, error), {})
    return found


def test_the_p_value_is_that_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 12):
        one, other = rng.normal(size=(2, count))
        found = ranked(measured({"one": one.tolist(), "other": other.tolist()}), title="F", unit="", up=True)
        assert found.pairs[0].p == pytest.approx(scipy.stats.ttest_rel(one, other).pvalue, rel=1e-9)


def test_five_seeds_need_2_78_errors() -> None:
    assert p_value(2.776, 1.0, 5) > 0.05 > p_value(2.777, 1.0, 5)
    assert p_value(1.0, None, 1) == 1.0
    assert p_value(0.0, 0.0, 5) == 1.0


def test_holm_by_hand_and_by_its_definition() -> None:
    """By hand: Holm (1979), and R's p.adjust. By definition: step down while p(i) <= level / (m - i + 1)."""
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.001, 0.5]) == pytest.approx([0.08, 0.003, 0.5])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([math.nan, 0.01]) == [1.0, 0.02]
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = (rng.random(rng.integers(1, 7)) ** 3).tolist()
        level, rejected = 0.05, set()
        for place, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[index] * (len(p) - place) >= level:
                break
            rejected.add(index)
        assert {index for index, adjusted in enumerate(holm(p)) if adjusted < level} == rejected


def test_a_difference_is_decided_beyond_both_errors() -> None:
    values = {"high": [1.0, 1.1, 0.9, 1.0, 1.05], "low": [0.0, 0.0, 0.0, 0.0, 0.0]}
    difference = math.fsum(values["high"]) / 5
    for error, is_decided in ((None, True), (0.0, True), (difference / 3, True), (difference / 2, False)):
        # Both sides have the error, and the error of the difference is sqrt(2) of it.
        found = ranked(measured(values, None if error is None else error / math.sqrt(2)), title="F", unit="", up=True)
        assert [mean.name for mean in found.means] == ["high", "low"]
        assert found.pairs[0].decided is is_decided
        assert found.best == (["high"] if is_decided else ["high", "low"])
    assert ranked(measured(values), title="F", unit="", up=False).means[0].name == "low"


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    found = ranked(
        measured({"all": [1.0, 1.0, 1.0, 1.0, 11.0], "some": {0: 2.0, 1: 2.1, 2: 1.9, 3: 2.0}, "other": {9: 0.0}}),
        title="F",
        unit="",
        up=True,
    )
    assert [(mean.name, mean.seeds) for mean in found.means] == [("all", 5), ("some", 4), ("other", 1)]
    (only,) = found.pairs
    assert (only.first, only.second, only.seeds) == ("all", "some", 4)
    assert only.difference == pytest.approx(-1.0)
    assert only.decided
    assert "some" in found.best  # it won where both have a number, although its mean is lower
    assert found.sentences() == ["Over 4 seeds, the F of all is 1.000 ± 0.041 (± 0 over data) below some's."]


def test_without_a_difference_at_most_one_study_in_twenty_decides_anything() -> None:
    """The chance of any false decision among all pairs of a study is at most 5 %, within four standard errors."""
    rng, studies = np.random.default_rng(0), 600
    decided = 0
    for values in rng.normal(size=(studies, 4, 5)) + rng.normal(size=(studies, 1, 5)):
        found = ranked(measured(dict(zip("abcd", values.tolist(), strict=True))), title="F", unit="", up=True)
        decided += any(pair.decided for pair in found.pairs)
    assert decided / studies < 0.05 + 4 * math.sqrt(0.05 * 0.95 / studies)


def test_a_ranking_asks_for_what_there_is(tmp_path: Path) -> None:
    contestants = {
        "with": Contestant("rae", extra=parts.only_some),
        "without": "rae_l2",
        "also": Contestant("ae", extra=parts.only_some),
    }
    found = run(cells_of(contestants), tmp_path)
    assert [mean.name for mean in found.ranking("some", up=True)[0].means] == ["with", "also"]
    with pytest.raises(ValueError, match=r"cannot rank by 'nothing'"):
        found.ranking("nothing", up=True)
    with pytest.raises(ValueError, match=r"no data set is called 'other': wanted one of table"):
        found.ranking("rmse", "other")
    json.loads(found.as_json({}), parse_constant=lambda name: pytest.fail(name))


def student(rows: int, seed: int) -> Tensor:
    """Rows of a factor model with Student-t noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 1)) @ np.array([[1.0, -1.0, 0.5]]) + 0.3 * rng.standard_t(2, size=(rows, 3))
    return torch.as_tensor(x)


def test_the_likelihood_that_made_the_data_wins_and_no_contestant_beats_itself(tmp_path: Path) -> None:
    data = dataclasses.replace(prepare(student(300, 0)), name="student")
    contestants = {
        "Gaussian": Contestant("sigma_vae", {"width": 16}),
        "Student": Contestant("sigma_vae", {"width": 16, "likelihood": StudentT(2.5)}),
        "again": Contestant("sigma_vae", {"width": 16, "likelihood": StudentT(2.5)}),
    }
    found = run(cells_of(contestants, 5, data, epochs=10, lr=3e-2), tmp_path).ranking()[0]
    pairs = {(pair.first, pair.second): pair for pair in found.pairs}
    won, same = pairs["Student", "Gaussian"], pairs["Student", "again"]
    assert won.decided
    assert won.difference > 0
    assert won.seeds == 5
    assert (same.difference, same.error_over_seeds, same.decided) == (0.0, 0.0, False)
    assert found.best == ["Student", "again"]


# Claims.


def claim(values: Any, **options: Any) -> Claim:
    return Claim("X.1", "a is above b", dict(enumerate(values)), **options)


@pytest.mark.parametrize(
    ("values", "options", "verdict"),
    [
        ([1.0, 1.2, 0.9, 1.1, 1.0], {}, "held"),
        ([-1.0, -1.2, -0.9, -1.1, -1.0], {}, "reversed"),
        ([1.0, -1.2, 0.9, 1.1, -1.0], {}, "undecided"),
        ([1.0, 1.2, 0.9, 1.1, 1.0], {"error_over_data": 0.6}, "undecided"),
        ([1.0], {}, "undecided"),
        ([], {}, "undecided"),
        ([0.0] * 5, {}, "undecided"),
        ([0.1, -0.1, 0.05, 0.0, -0.05], {"margin": 0.5}, "held"),
        ([0.0] * 5, {"margin": 0.5}, "held"),
        ([2.1, 1.9, 2.0, 2.0, 2.05], {"margin": 0.5}, "reversed"),
        ([-2.1, -1.9, -2.0, -2.0, -2.05], {"margin": 0.5}, "reversed"),
        ([0.5, 0.3, 0.7, 0.4, 0.6], {"margin": 0.5}, "undecided"),
        ([0.1, -0.1, 0.05, 0.0, -0.05], {"margin": 0.5, "error_over_data": 0.3}, "undecided"),
    ],
)
def test_a_claim_is_held_reversed_or_undecided(values: Any, options: Any, verdict: str) -> None:
    assert judged([claim(values, **options)])[0].verdict == verdict


def test_claims_of_one_name_are_one_family() -> None:
    """With an error of 1 over five seeds, a mean of 3 has p = .04: enough alone, and not among two."""
    values = scipy.stats.norm.ppf((np.arange(5) + 0.5) / 5)
    values = 3.0 + values / (values.std(ddof=1) / math.sqrt(5))
    one = claim(values.tolist())
    assert judged([one])[0].p == pytest.approx(scipy.stats.ttest_1samp(values, 0.0).pvalue)
    assert [found.verdict for found in judged([one, one._replace(name="X.2")])] == ["held", "held"]
    assert [found.verdict for found in judged([one, one._replace(text="b")])] == ["undecided", "undecided"]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, math.nan], {}, "X.1: the difference of seed 1 is not finite: leave this seed out"),
        ([1.0], {"margin": 0.0}, "X.1: the margin must be positive"),
    ],
)
def test_a_claim_without_sense_is_refused(values: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judged([claim(values, **options)])


# Other processes.


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Cell], str]]:
    """Cells, and the table that they give in this process, in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    cells = cells_of({"sigma": "sigma_vae", "own": Contestant(parts.plain, {"likelihood": StudentT()})})
    yield cells, run(cells, tmp_path_factory.mktemp("here")).as_csv()
    torch.set_default_dtype(before)


@pytest.mark.process
def test_local_processes_give_the_same_table_and_one_that_dies_is_a_row_which_is_tried_again(
    here: Any, tmp_path: Path
) -> None:
    cells, table_here = here
    flag = tmp_path / "flag"
    flag.touch()
    dying = cells_of({"dying": Contestant(parts.dying, {"flag": str(flag)})})
    found = run([*cells, *dying], tmp_path / "out", jobs=2)
    assert [row.record["status"] for row in found.rows] == ["done"] * len(cells) + ["failed"]
    assert found.rows[-1].reason.startswith("its process died")
    assert found.as_csv().splitlines()[:-1] == table_here.splitlines()
    before = {path: path.stat().st_mtime_ns for row in found.rows[:-1] for path in row.folder.iterdir()}
    flag.unlink()
    again = run([*cells, *dying], tmp_path / "out")
    assert [row.record["status"] for row in again.rows] == ["done"] * (len(cells) + 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.process
def test_a_pool_of_the_user_gives_the_same_table_and_if_it_breaks_rows_with_a_reason(here: Any, tmp_path: Path) -> None:
    cells, table_here = here
    flag = tmp_path / "flag"
    flag.touch()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert run(cells, tmp_path / "pool", executor=pool).as_csv() == table_here
        more = cells_of({"dying": Contestant(parts.dying, {"flag": str(flag)}), "good": "rae"})
        found = run(more, tmp_path / "pool", executor=pool)
    assert all(row.reason.startswith("its process died") for row in found.rows)


@pytest.mark.process
@pytest.mark.filterwarnings("ignore")  # dask's own
def test_a_dask_cluster_gives_the_same_table(here: Any, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    cells, table_here = here
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None, "local_directory": str(tmp_path)}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        assert run(cells, tmp_path / "out", executor=client.get_executor()).as_csv() == table_here


STORM = """
import os, signal, sys
from pathlib import Path
import torch
from ppl_vae import prepare
from ppl_vae.studies import Judging, grid, study

torch.set_num_threads(1)
root = Path(sys.argv[1])
x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")

def start(out, end=None):
    '''Run the study in a process of its own, which kills itself at a moment. Return its table, or None.'''
    child = os.fork()
    if child == 0:
        seen = 0
        def hook(event, arguments):
            nonlocal seen
            if event in EVENTS and str(out) in str(arguments[0]):
                seen += 1
                if seen == end:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        cells = grid(["rae"], prepare(x), 2, z_dim=2, judging=Judging(1, 2), epochs=1)
        found = study(cells, out, progress=False)
        (root / "table").write_text(found.as_csv())
        (root / "seen").write_text(str(seen))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else (root / "table").read_text()

warm = grid(["rae"], prepare(x), 1, z_dim=2, judging=Judging(1, 2), epochs=1)
study(warm, root / "warm", progress=False).as_csv()  # so that no child has to import anything
whole = start(root / "whole")
events = int((root / "seen").read_text())
assert events > 20, events
kills = 0
for number in range(10):
    out = root / f"out{number}"
    end = 1 + number * (events - 1) // 9
    killed = start(out, end) is None
    kills += killed
    left = {path: path.stat().st_mtime_ns for path in out.glob("cells/[!.]*/*")}
    assert start(out) == whole, number
    assert all(path.stat().st_mtime_ns == when for path, when in left.items()), number
    assert not list(out.rglob("*.part*")), number
assert kills == 10, kills
print("all equal")
"""


@pytest.mark.process
def test_a_study_that_is_killed_at_ten_moments_and_started_again_equals_one_that_was_not(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", STORM, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stdout == "all equal\n", ran.stderr


JOBS = """
import sys, torch
from ppl_vae import prepare
from ppl_vae.studies import Judging, grid, study

if __name__ == "__main__":
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    cells = grid(["sigma_vae"], prepare(x), 40, z_dim=2, judging=Judging(1, 2), epochs=1)
    study(cells, sys.argv[1], jobs=2)
"""


def children_of(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("signal_number", [2, 9])
def test_a_driver_that_ends_leaves_no_worker_and_no_half_written_cell(tmp_path: Path, signal_number: int) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(JOBS)
    driver = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert until(lambda: len(list(out.glob("cells/[!.]*"))) >= 2, 60)
        workers = children_of(driver.pid)
        assert len(workers) >= 2
        driver.send_signal(signal_number)
        driver.wait(20)
        assert until(lambda: not any(map(is_running, workers)), 10)
    finally:
        driver.kill()
    for folder in out.glob("cells/[!.]*"):
        assert json.loads((folder / "cell.json").read_text())["status"] == "done"
    if signal_number == 2:
        assert not list(out.rglob("*.part*"))
