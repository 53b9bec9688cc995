"""The run of Pyro's own tests: the table from its logs, and the replacement of SVI before a file is imported."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ppl_vae.experiments.pyro_suite import (
    Job,
    append,
    compare,
    details,
    loss_difference,
    outcome,
    read,
    relative,
    way,
)

FILE = """
import pyro, ppl_vae, torch
from pyro.infer import SVI, Trace_ELBO
import pyro.infer.svi

def model():
    pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))

def guide():
    pyro.sample("z", pyro.distributions.Normal(pyro.param("loc", torch.tensor(1.0)), 1.0))

def test_steps():
    assert SVI is ppl_vae.SVI and pyro.infer.svi.SVI is SVI
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.5}), loss=Trace_ELBO())
    for _ in range(6):
        svi.step()

def test_fails():
    raise KeyError("told")

def test_ends_the_process():
    import os
    os._exit(3)
"""


def svi(
    steps: int = 6, graph: int = 4, reason: str | None = None, returned: str = "number", **more: Any
) -> dict[str, Any]:
    losses = [[1.0 + step] for step in range(steps)]
    return (
        {"steps": steps, "from graph": graph, "seconds": 2.0, "reason": reason, "returned": returned}
        | {"losses": losses}
        | more
    )


def row(*svis: dict[str, Any], word: str = "passed") -> dict[str, Any]:
    return outcome("a", word) | {"svis": list(svis)}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (row(), "no step"),
        (row(svi(0, 0)), "no step"),
        (row(svi(6, 0, "it reads a value"), svi()), "graph"),
        (row(svi(6, 0, "it reads a value")), "it reads a value"),
        (row(svi(2, 0)), "two steps or fewer"),
        (row(svi(6, 0)), "no graph yet"),
    ],
)
def test_how_the_steps_of_a_test_ran(found: dict[str, Any], said: str) -> None:
    assert way(found) == said


def test_losses_are_compared_step_by_step() -> None:
    nan, inf = math.nan, math.inf

    assert relative(nan, nan) == relative(inf, inf) == 0.0
    assert relative(nan, 1.0) == relative(inf, 1.0) == inf
    assert relative(2.0, 1.0) == 0.5
    assert loss_difference(row(svi()), row(svi())) == 0.0
    assert loss_difference(row(svi(2)), row(svi(2, losses=[[1.0], [1.0]]))) == 0.5
    assert loss_difference(row(svi()), row(svi(5))) == inf
    assert loss_difference(row(svi()), row(svi(), svi())) == inf
    assert loss_difference(row(svi(returned="2 parts")), row(svi(returned="shape (2,)"))) == inf


def test_a_row_of_the_table_counts_what_passes_under_pyro_alone() -> None:
    theirs = {"a": row(svi()), "b": row(svi()), "c": row(svi(), word="failed"), "d": row(), "e": row(svi())}
    ours = {"a": row(svi(seconds=1.0)), "b": row(svi(3, 0, "it says why"), word="failed"), "c": row(svi())}

    found = compare("file", "its own", theirs, ours)

    assert (found["tests that Pyro passes"], found["of these, with an SVI"]) == (4, 3)
    assert (found["ours passes"], found["ours fails"]) == (1, 2)  # b fails, e was not run
    assert (found["from a graph"], found["eagerly"], found["why eagerly"]) == (1, 1, "1 x it says why")
    assert (found["Pyro, s"], found["ours, s"], found["ours / Pyro"], found["steps"]) == (2.0, 1.0, 0.5, 6)


def test_a_test_that_passes_with_other_losses_has_a_message() -> None:
    theirs = {"a": row(svi(1)), "b": row(svi(1)), "c": row(svi(1))}
    ours = {"a": row(svi(1)), "b": row(svi(1, losses=[[1.002]])), "c": row(svi(1), svi(1))}

    found = compare("file", "its own", theirs, ours)
    told = {line["test"]: line.get("message") for line in details("file", theirs, ours)}

    assert (found["ours passes"], found["losses differ"], found["largest difference of losses"]) == (
        3,
        2,
        "not comparable",
    )
    assert told["a"] is None
    assert told["b"] == "the relative difference of losses is 0.002"
    assert told["c"] == "the relative difference of losses is inf"


def test_a_log_that_was_cut_off_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, {"start": "a"})
    append(log, outcome("a"))
    append(log, {"start": "b"})
    with log.open("a") as file:
        file.write('{"test": "b", "outc')

    assert read(log)[1:] == ("b", False, False)
    append(log, outcome("b", "stopped"))
    append(log, {"end": "file", "whole": True})
    assert {test: found["outcome"] for test, found in read(log).results.items()} == {"a": "passed", "b": "stopped"}
    assert read(log)[1:] == (None, True, True)


@pytest.mark.process
def test_svi_is_replaced_before_the_file_is_imported(tmp_path: Path) -> None:
    (tmp_path / "test_file.py").write_text(FILE)
    job = Job("ours", "test_file.py", str(tmp_path / "log"), limit=300.0)
    program = "from ppl_vae.experiments.pyro_suite import child; child()"

    ended = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(job._asdict()), text=True, cwd=tmp_path, check=False
    )

    log = read(tmp_path / "log")
    (noted,) = log.results["test_file.py::test_steps"]["svis"]
    assert log.results["test_file.py::test_steps"]["outcome"] == "passed"
    assert (noted["steps"], noted["reason"], noted["returned"]) == (6, None, "number")
    assert 0 < noted["from graph"] < 6  # the first step is always eager
    assert len(noted["losses"]) == 6
    assert log.results["test_file.py::test_fails"]["message"] == "KeyError: 'told'"
    assert (ended.returncode, log.pending) == (3, "test_file.py::test_ends_the_process")
