"""The command line: what it prints and writes, and its exit codes: 0, 1 for a failure, 2 for a usage error."""

import csv
import dataclasses
import inspect
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import matplotlib.image
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.main import get_command
from typer.testing import CliRunner

from ppl_vae import VARIANTS, bounds, compare, ex_post, fit, load, prepare, sample, save
from ppl_vae.catalogue import entries
from ppl_vae.checkpoint import notes_of
from ppl_vae.cli import app, main
from ppl_vae.cli.options import RunData, TrainingOptions
from ppl_vae.data.data_set import BINARIZE
from ppl_vae.evaluation.metrics import COLUMNS
from ppl_vae.streams import seeded
from ppl_vae.studies.work import run_cell
from ppl_vae.training.options import SCHEDULES, Speed

COMMANDS = ["variants", "train", "evaluate", "sample", "diagnose", "compare", "estimators"]
TINY = ("--limit", 60, "--epochs", 1, "--z-dim", 2)  # 60 digits for training, 15 held out
SMALL = ("--z-dim", 2, "--components", 2, "-K", 5)
CHECKPOINT = ["history.csv", "receipt.txt", "variant.json", "variant.safetensors"]


class Ran(NamedTuple):
    """The exit code of a command and what it printed."""

    code: Any
    out: str
    err: str


@pytest.fixture
def ppl_vae(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the console script in this process. An exception other than an exit fails the test."""

    def run(*arguments: Any) -> Ran:
        monkeypatch.setattr(sys, "argv", ["ppl-vae", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return Ran(code, *capsys.readouterr())

    return run


def checkpoint(folder: Path, label: str) -> Path:
    """The only checkpoint of a fit in a comparison's folder."""
    [path] = (folder / "cells").glob(f"{label}-*")
    return path


def strict(text: str) -> Any:
    """Parse JSON as the standard defines it, without NaN or Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small table of real numbers."""
    path = tmp_path_factory.mktemp("data") / "tiny.csv"
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.savetxt(path, x, delimiter=",", header="first,second,third", comments="")
    return path


@pytest.fixture
def trained(ppl_vae: Callable[..., Ran], tmp_path: Path) -> tuple[Path, Ran]:
    """The folder of a variant that was trained on some digits, and what the command printed."""
    folder = tmp_path / "runs" / "digits" / "sigma_vae"
    return folder, ppl_vae("train", "sigma_vae", *TINY, "--seed", 3, "--out", folder, "--json", "--quiet")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, table: Path) -> tuple[Path, Ran]:
    """A comparison of two variants, of which one must fail: real numbers are outside the support of a Bernoulli."""
    folder, out, err = tmp_path_factory.mktemp("runs") / "compare", io.StringIO(), io.StringIO()
    command = ["ppl-vae", "compare", "sigma_vae", "bernoulli_vae", "--data", str(table), *SMALL, "--epochs", "2"]
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setattr(sys, "argv", [*map(str, command), "--out", str(folder)])
        with pytest.raises(SystemExit) as end:
            main()
    return folder, Ran(end.value.code, out.getvalue(), err.getvalue())


# Help and the catalogue.


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda command: " ".join(command) or "-")
def test_help_says_what_a_command_does(command: list[str]) -> None:
    ran = CliRunner().invoke(app, [*command, "--help"])
    said = " ".join(ran.output.split())
    registered = {found.callback.__name__: found.callback for found in app.registered_commands if found.callback}
    first_lines = [(registered[name].__doc__ or "").splitlines()[0] for name in command]

    assert ran.exit_code == 0
    assert list(registered) == COMMANDS
    assert all(line in said for line in first_lines)
    assert command or all(name in said for name in COMMANDS)
    assert all(flag in said for flag in ("--data", "--limit", "--seed") if command in (["train"], ["compare"]))


def test_no_command_shows_help_and_is_a_usage_error() -> None:
    ran = CliRunner().invoke(app, [])

    assert ran.exit_code == 2
    assert all(name in ran.output for name in COMMANDS)


def test_the_catalogue_is_printed_as_json_whole() -> None:
    ran = CliRunner().invoke(app, ["variants", "--json"])

    assert ran.exit_code == 0
    assert strict(ran.output) == list(entries())


def test_the_catalogue_is_printed_as_a_table_whole() -> None:
    ran = CliRunner().invoke(app, ["variants"])

    assert ran.exit_code == 0
    assert [name for name in VARIANTS if f" {name} " not in ran.output] == []


# One record of options for train and compare.

OPTIONS = {
    command: {option.name: option for option in get_command(app).commands[command].params}
    for command in ("train", "compare")
}
OF_TRAIN = {"variant"}
OF_COMPARE = {"contestants", "num_particles", "components", "features"}  # the variants, and how they are evaluated
OF_COMPARE |= {"seeds", "jobs", "threads", "force"}


def test_neither_train_nor_compare_lacks_an_option_of_the_other() -> None:
    shared = OPTIONS["train"].keys() - OF_TRAIN

    assert shared == OPTIONS["compare"].keys() - OF_COMPARE
    assert shared >= {field.name for field in dataclasses.fields(TrainingOptions)}
    for name in shared:
        one, other = OPTIONS["train"][name], OPTIONS["compare"][name]
        assert (one.opts, one.default) == (other.opts, other.default)


def test_the_record_hands_its_fields_to_prepare_and_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """All arguments of both are handed over, except those that only Python can give, such as validation rows."""
    monkeypatch.setattr("ppl_vae.cli.options.prepare", lambda source, **given: {"source": source, **given})
    handed: Any = TrainingOptions(
        data="x.csv", data_root=Path("sets"), binarize="static", limit=5, split="tail", seed=3
    )

    assert handed.prepared() == {
        "source": "x.csv",
        "scale": "auto",
        "binarize": "static",
        "limit": 5,
        "split": "tail",
        "seed": 3,
        "root": Path("sets"),
    }
    to_fit = handed.fit_arguments()
    assert to_fit == {name: getattr(handed, name) for name in to_fit}
    of_fit = inspect.signature(fit).parameters.keys() | Speed.__annotations__.keys()
    of_python = {"variant", "data", "validation", "optimizer", "progress", "channels_last", "speed"}
    assert to_fit.keys() == of_fit - of_python


@pytest.mark.parametrize(("option", "known"), [("binarize", BINARIZE), ("schedule", SCHEDULES)])
def test_the_choices_of_an_option_are_those_of_the_library(option: str, known: Iterable[str]) -> None:
    """The other options take their choices from the library itself."""
    hint = get_type_hints(TrainingOptions)[option]
    choices = hint if get_origin(hint) is Literal else get_args(hint)[0]  # the other member of the union is None

    assert set(get_args(choices)) == set(known)


def test_the_options_of_a_comparison_act_on_the_variants_that_have_them(
    ppl_vae: Callable[..., Ran], table: Path, tmp_path: Path
) -> None:
    flags = ("--set", "beta=2", "--backend", "eager", "--precision", "bf16_matmul", "--data", table, *SMALL)
    ran = ppl_vae("compare", "sigma_vae", "beta_vae", *flags, "--epochs", 1, "--quiet", "--out", tmp_path)
    found = strict((tmp_path / "table.json").read_text())
    runs = {name: checkpoint(tmp_path, f"tiny-{name}-0") for name in ("sigma_vae", "beta_vae")}
    fits = [notes_of(run)["fit"] for run in runs.values()]

    assert (ran.code, ran.err) == (0, "")
    assert found["settings"]["options"] == {"beta": 2}
    assert (found["settings"]["backend"], found["settings"]["precision"]) == ("eager", "bf16_matmul")
    assert [(made["backend"].split(":")[0], made["precision"]) for made in fits] == [("eager", "bf16_matmul")] * 2
    assert load(runs["beta_vae"]).model.recipe["options"] == {"beta": 2}
    assert load(runs["sigma_vae"]).model.recipe["options"] == {}
    assert any("beta" in line and "2" in line for line in found["rows"][1]["receipt"])


def test_the_library_refuses_an_option_that_no_variant_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'gamma' is not an option of rae, ae: wanted sigma"):
        compare(["rae", "ae"], prepare(torch.randn(20, 3)), tmp_path / "out", options={"sigma": 1.0, "gamma": 1})

    assert not (tmp_path / "out").exists()


# From data to samples.


def test_training_keeps_a_checkpoint_and_says_so_in_json(trained: tuple[Path, Ran]) -> None:
    folder, ran = trained
    said = strict(ran.out)

    assert (ran.code, ran.err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == CHECKPOINT
    assert said["checkpoint"] == str(folder)
    origin = {"source": "digits", "scale": "auto", "binarize": None, "limit": 60, "split": "random", "seed": 3}
    assert said["data"] == origin
    numbers = {"epochs": 1, "steps": 1, "batch_size": 64, "lr": 0.002, "seed": 3, "rows": 54}
    assert said["fit"] == {**numbers, "optimizer": "Adam", "backend": "fx", "precision": "full"}
    assert {"data": said["data"], "fit": said["fit"]} == notes_of(folder)
    with (folder / "history.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in written] == [row["loss"] for row in said["history"]]
    assert "estimator" in (folder / "receipt.txt").read_text()


def test_progress_and_the_receipt_are_shown(ppl_vae: Callable[..., Ran], table: Path, tmp_path: Path) -> None:
    ran = ppl_vae("train", "rae", "--data", table, "--epochs", 2, "--out", tmp_path / "rae", "--set", "sigma=0.5")
    lines = ran.err.splitlines()

    assert ran.code == 0
    assert [line.split("  ")[0] for line in lines] == ["rae: epoch 1/2", "rae: epoch 2/2"]
    assert all("loss" in line and "s left" in line for line in lines)
    assert f"checkpoint: {tmp_path / 'rae'}" in ran.out
    assert (tmp_path / "rae" / "receipt.txt").read_text() in ran.out + "\n"
    assert float(load(tmp_path / "rae").model.likelihood(torch.zeros(1)).scale) == 0.5


def test_the_same_command_gives_the_same_weights(ppl_vae: Callable[..., Ran], table: Path, tmp_path: Path) -> None:
    weights = []
    for folder in ("one", "two"):
        torch.manual_seed(len(weights))
        ran = ppl_vae("train", "sigma_vae", "--data", table, "--epochs", 1, "--quiet", "--out", tmp_path / folder)
        assert ran.code == 0
        weights.append(load_file(tmp_path / folder / "variant.safetensors"))

    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_checkpoint_is_judged_on_the_rows_that_were_held_out(
    ppl_vae: Callable[..., Ran], trained: tuple[Path, Ran]
) -> None:
    folder, _ = trained
    ran = ppl_vae("evaluate", folder, "--components", 2, "-K", 5, "--json")
    row = strict(ran.out)
    held_out = prepare("digits", scale="auto", limit=60, seed=3).test
    with seeded(0):
        expected = bounds(load(folder), held_out, 5)

    assert (ran.code, ran.err) == (0, "")
    figures = [part for name in COLUMNS for part in (name, f"{name}_error")]
    assert list(row) == ["run", "features", "K", *figures, "notes"]
    assert (row["run"], row["K"], len(held_out)) == (str(folder), 5, 15)
    assert row["bound"] == pytest.approx(float(expected.elbo.mean()), rel=1e-12)
    assert row["importance_weighted"] == pytest.approx(float(expected.importance_weighted.mean()), rel=1e-12)
    assert row["log_joint"] is None


def test_an_evaluation_is_printed_with_titles_and_errors(
    ppl_vae: Callable[..., Ran], trained: tuple[Path, Ran]
) -> None:
    ran = ppl_vae("evaluate", trained[0], "--components", 2, "-K", 2, "--features", "pca")

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("15 held-out data; K = 2; F in ")
    assert [column.title for column in COLUMNS.values() if f"\n{column.title} " not in ran.out] == []


@pytest.mark.parametrize("mean", [False, True], ids=["draws", "means"])
@pytest.mark.parametrize("fitted", [False, True], ids=["prior", "ex-post"])
def test_samples_are_those_of_the_library(
    ppl_vae: Callable[..., Ran], trained: tuple[Path, Ran], tmp_path: Path, *, mean: bool, fitted: bool
) -> None:
    folder, _ = trained
    flags = ["--mean"] * mean + ["--ex-post", "--components", "2"] * fitted
    ran = ppl_vae("sample", folder, "--count", 5, "--seed", 4, "--out", tmp_path / "new" / "x.npy", *flags)
    variant = load(folder)
    data = prepare("digits", scale="auto", limit=60, seed=3)
    prior = ex_post.fit(variant, data, 2, 4) if fitted else None
    samples = np.load(tmp_path / "new" / "x.npy", allow_pickle=False)

    assert (ran.code, ran.err) == (0, "")
    assert np.array_equal(samples, sample(variant, 5, prior=prior, mean=mean, seed=4).numpy())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.npy"]


def test_the_mixture_of_samples_is_fitted_on_the_data_that_are_named(ppl_vae: Callable[..., Ran], folder: Path) -> None:
    """The checkpoint does not say what data it was trained on."""
    flags = ("--components", 1, "--data", "real.csv", "--out", "x.npy")
    ran = ppl_vae("sample", "rae", "--ex-post", *flags)
    prior = ex_post.fit(load("rae"), prepare("real.csv"), 1, 0)

    assert (ran.code, ran.err) == (0, "")
    assert np.array_equal(np.load("x.npy"), sample(load("rae"), 64, prior=prior, seed=0).numpy())


def test_an_option_of_the_data_takes_the_place_of_that_of_the_training(
    trained: tuple[Path, Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others stay those of the training."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("ppl_vae.cli.options.prepare", lambda source, **given: asked.update(given, source=source))
    RunData(limit=40).opened(trained[0])

    assert (asked["source"], asked["limit"], asked["seed"]) == ("digits", 40, 3)


def test_samples_are_a_picture(ppl_vae: Callable[..., Ran], trained: tuple[Path, Ran], tmp_path: Path) -> None:
    folder, _ = trained
    ran = ppl_vae("sample", folder, "--count", 5, "--mean", "--out", tmp_path / "x.png")
    picture = matplotlib.image.imread(tmp_path / "x.png")
    first = sample(load(folder), 5, mean=True, seed=0)[0, 0].numpy() / 16

    assert ran.code == 0
    assert picture.shape[:2] == (2 * 10, 3 * 10)  # 5 images in rows of 3, each 8 by 8 with a white border of a pixel
    assert bool((picture[0] == 1).all())
    assert bool((picture[10:, 20:] == 1).all())
    np.testing.assert_allclose(picture[1:9, 1:9, 0], first.clip(0, 1), atol=1 / 255)  # one byte per pixel


def test_a_comparison_of_which_a_part_fails_reports_the_rest_and_the_reason(compared: tuple[Path, Ran]) -> None:
    folder, ran = compared
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = ["variant", "data", "values", "seed", "measure", "best_epoch"]
    columns += [part for name in COLUMNS for part in (name, f"{name}_error")] + ["reason"]

    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert "compare: cell 1/2  tiny-sigma_vae-0  bound " in ran.err
    assert f"report: {folder / 'report.html'}\ncheckpoints: {folder / 'cells' / 'tiny-NAME-SEED-*'}\n" in ran.out
    assert "\nRefused or diverged\nbernoulli_vae: x holds " in ran.out
    written = ["cells", "report.html", "study.json", "table.csv", "table.json"]
    assert sorted(path.name for path in folder.iterdir()) == written
    assert list(rows[0]) == columns
    assert [row["variant"] for row in rows] == ["sigma_vae", "bernoulli_vae"]
    assert rows[0]["reason"] == ""
    assert float(rows[0]["bound"]) <= float(rows[0]["importance_weighted"])
    assert "outside the support of Bernoulli" in rows[1]["reason"]
    assert {rows[1][name] for name in columns[5:-1]} == {""}


def test_the_tables_of_a_comparison_agree(compared: tuple[Path, Ran]) -> None:
    folder, _ = compared
    found = strict((folder / "table.json").read_text())
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))

    assert found["columns"].keys() == COLUMNS.keys()
    assert found["settings"]["command"].startswith("ppl-vae compare sigma_vae bernoulli_vae --data")
    for row, written in zip(found["rows"], rows, strict=True):
        printed = {name: "" if row.get(name) is None else str(row[name]) for name in written}
        assert printed == written
    assert found["rows"][0]["empty"]["log_joint"] == "has a bound"


def test_the_report_of_a_comparison_stands_alone(compared: tuple[Path, Ran]) -> None:
    text = (compared[0] / "report.html").read_text()

    assert text.lstrip().lower().startswith("<!doctype html>")
    assert "outside the support of Bernoulli" in text
    assert not any(link in text for link in ('src="http', "src='http", "<link", "@import", "url(http"))


def test_a_comparison_keeps_checkpoints_in_single_precision(
    ppl_vae: Callable[..., Ran], compared: tuple[Path, Ran], table: Path
) -> None:
    folder, _ = compared
    run = checkpoint(folder, "tiny-sigma_vae-0")
    ran = ppl_vae("evaluate", run, "--components", 2, "-K", 5, "--json")
    with (folder / "table.csv").open() as file:
        row = next(csv.DictReader(file))

    tensors = load_file(run / "variant.safetensors")

    in_double = {name for name, value in tensors.items() if value.dtype == torch.float64}
    assert in_double == {"model.scale.shift", "model.scale.width"}  # the units of the data keep all their digits
    assert next(load(run).model.parameters()).dtype == torch.float32
    assert notes_of(run)["data"]["source"] == str(table)
    assert strict(ran.out)["bound"] == pytest.approx(float(row["bound"]), rel=1e-5)  # single precision


def test_a_comparison_of_pictures_binarises_them_where_it_must(ppl_vae: Callable[..., Ran], tmp_path: Path) -> None:
    flags = (*TINY, "--components", 2, "-K", 2, "--features", "pca", "--quiet", "--json")
    ran = ppl_vae("compare", "sigma_vae", "bernoulli_vae", *flags, "--out", tmp_path / "digits")
    said = strict(ran.out)
    rows = {row["variant"]: row for row in said["rows"]}

    assert (ran.code, ran.err) == (0, "")
    assert said["settings"]["report"] == str(tmp_path / "digits" / "report.html")
    assert said["settings"]["checkpoints"] == str(tmp_path / "digits" / "cells" / "digits-NAME-SEED-*")
    assert rows["sigma_vae"]["measure"] == "density"
    assert rows["bernoulli_vae"]["measure"] == "mass of binarized x"
    assert "Bernoulli draw" in rows["bernoulli_vae"]["values"]
    assert (rows["sigma_vae"]["bits_per_dim"] is None, rows["bernoulli_vae"]["bits_per_dim"] is None) == (True, False)


def test_a_comparison_goes_on_where_held_out_rows_have_no_density(
    ppl_vae: Callable[..., Ran], table: Path, tmp_path: Path
) -> None:
    """The unit scale is fitted on training rows, and the smallest number of a table may be in a held-out row."""
    names = ("continuous_bernoulli_vae", "sigma_vae")
    flags = ("--data", table, "--scale", "unit", *SMALL, "--epochs", 1, "--quiet", "--json")
    ran = ppl_vae("compare", *names, *flags, "--out", tmp_path / "out")
    rows = {row["variant"]: row for row in strict(ran.out)["rows"]}

    assert (ran.code, ran.err) == (1, "")
    assert "outside the support of ContinuousBernoulli" in rows["continuous_bernoulli_vae"]["reason"]
    assert rows["sigma_vae"]["bound"] <= rows["sigma_vae"]["importance_weighted"]


@pytest.mark.parametrize("limit", [2, 3])
def test_a_handful_of_data_is_enough_to_train(
    ppl_vae: Callable[..., Ran], table: Path, tmp_path: Path, limit: int
) -> None:
    """A single held-out datum has a score, but no standard error."""
    flags = ("--data", table, "--scale", "none", "--limit", limit, "--epochs", 1, "--quiet", "--json")
    ran = ppl_vae("train", "sigma_vae", *flags, "--out", tmp_path / "few")
    row = strict(ran.out)["history"][0]

    assert (ran.code, ran.err) == (0, "")
    assert isinstance(row["held_out_loss"], float)
    assert row["held_out_error"] is None


# A comparison is a study: it has seeds and contestants, and it goes on.


@pytest.fixture(scope="module")
def study_command(tmp_path_factory: pytest.TempPathFactory, table: Path) -> list[Any]:
    """A comparison of a variant with itself, under another name and with another option, over two seeds."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    flags = ["--data", table, *SMALL, "--epochs", 1, "--seed", 4, "--seeds", 2, "--out", folder]
    return ["compare", "beta_vae", "wide=beta_vae:beta=0.5,sigma=0.3", *flags, "--set", "beta_vae.sigma=0.2"]


def test_a_study_has_rows_for_contestants_and_seeds_and_a_second_run_repeats_none(
    ppl_vae: Callable[..., Ran], study_command: list[Any], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ppl_vae(*study_command)
    folder = study_command[study_command.index("--out") + 1]
    found = strict((folder / "table.json").read_text())
    cells = {path.name.rpartition("-")[0]: path for path in (folder / "cells").iterdir()}  # without their keys
    monkeypatch.setattr("ppl_vae.studies.executors.run_cell", lambda *_: pytest.fail("trained again"))
    second = ppl_vae(*study_command)

    assert (first.code, second.code) == (0, 0)
    rows = [("beta_vae", 4), ("wide", 4), ("beta_vae", 5), ("wide", 5)]
    assert [(row["variant"], row["seed"]) for row in found["rows"]] == rows
    assert sorted(cells) == sorted(f"tiny-{name}-{seed}" for name, seed in rows)
    options = {name: load(cells[f"tiny-{name}-5"]).model.recipe["options"] for name in ("beta_vae", "wide")}
    assert options == {"beta_vae": {"sigma": 0.2}, "wide": {"beta": 0.5, "sigma": 0.3}}
    origins = [notes_of(path)["data"] for path in cells.values()]
    assert [origin["seed"] for origin in origins] == [4] * 4  # the split is that of --seed for all seeds
    assert {notes_of(path)["fit"]["seed"] for path in cells.values()} == {4, 5}
    assert second.err == "compare: all 4 fits are done, and nothing is trained again\n"
    assert second.out == first.out


def test_the_printed_table_has_means_over_seeds_in_80_columns(
    ppl_vae: Callable[..., Ran], study_command: list[Any]
) -> None:
    ran = ppl_vae(*study_command, "--quiet")
    folder = study_command[study_command.index("--out") + 1]
    found = strict((folder / "table.json").read_text())
    lines = ran.out.splitlines()
    place = lines.index("Bounds of the log density")
    [values] = [[row["bound"] for row in found["rows"] if row["variant"] == "wide"]]
    mean, error = sum(values) / 2, abs(values[0] - values[1]) / 2  # the standard error of two values

    assert lines[:place][0].startswith("Over 2 seeds, ")
    assert lines[place + 1].split() == ["contestant", "bound", "RMSE", "F", "ex", "post"]
    name, value, _, spread, *_ = lines[place + 3].replace("\N{MINUS SIGN}", "-").split()
    assert name == "wide"
    assert (float(value), float(spread)) == pytest.approx((mean, error), abs=0.06 * error)
    assert max(map(len, lines[place : place + 4])) <= 80
    assert "± is the standard error of the mean over 2 seeds." in ran.out


def test_more_seeds_train_those_that_are_missing(
    ppl_vae: Callable[..., Ran], study_command: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ppl_vae(*study_command, "--quiet")
    trained: list[str] = []
    monkeypatch.setattr(
        "ppl_vae.studies.executors.run_cell", lambda cell, *rest: trained.append(cell.label) or run_cell(cell, *rest)
    )
    ran = ppl_vae(*study_command, "--seeds", 3)  # the last one counts

    assert ran.code == 0
    assert ran.err.startswith("compare: 4 of 6 fits are done, and the others are run\n")
    assert trained == ["tiny-beta_vae-6", "tiny-wide-6"]


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"])
def test_a_comparison_that_is_stopped_keeps_what_is_done(
    ppl_vae: Callable[..., Ran],
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sign: signal.Signals,
    code: int,
) -> None:
    """The signal comes in the second of two trainings."""

    def stopped(cell: Any, *rest: Any) -> Any:
        if cell.contestant.build == "rae":
            signal.raise_signal(sign)
        return run_cell(cell, *rest)

    command = ["compare", "sigma_vae", "rae", "--data", table, *SMALL, "--epochs", 1, "--out", tmp_path]
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
    with monkeypatch.context() as patched:
        patched.setattr("ppl_vae.studies.executors.run_cell", stopped)
        ran = ppl_vae(*command, "--quiet")
    signal.signal(signal.SIGINT, earlier)
    again = ppl_vae(*command)

    assert (ran.code, ran.out) == (code, "")
    assert ran.err == "ppl-vae: stopped with 1 of 2 fits done; the same call goes on\n"
    assert again.code == 0
    assert again.err.startswith("compare: 1 of 2 fits are done, and the others are run\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_folder_that_holds_something_else_needs_force(
    ppl_vae: Callable[..., Ran], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("folder", "thesis").write_text("years of work")
    command = ("compare", "rae", "--data", "real.csv", "--epochs", 1, *SMALL, "--quiet", "--out", "folder")
    refused = ppl_vae(*command)
    forced = ppl_vae(*command, "--force")

    assert refused.code == 1
    assert refused.err.startswith("ppl-vae: folder holds something else than a study, and is left as it is: ")
    assert "--force" in refused.err
    assert forced.code == 0
    assert Path("folder", "thesis").read_text() == "years of work"
    assert Path("folder", "report.html").is_file()


# Usage errors end with 2.

USAGE: dict[str, tuple[list[Any], str]] = {
    "no-such-command": (["trian"], "No such command 'trian'"),
    "unknown-variant": (["train", "gamma_vae"], f"unknown variant 'gamma_vae': wanted one of {', '.join(VARIANTS)}"),
    "unknown-among-known": (["compare", "rae", "gamma_vae"], "unknown variant 'gamma_vae': wanted one of"),
    "unknown-under-a-name": (["compare", "rae", "b=gamma_vae:beta=2"], "unknown variant 'gamma_vae': wanted one of"),
    "twice": (["compare", "rae", "rae"], "two contestants are called 'rae': give each its own name, NAME=rae"),
    "no-option-value": (["compare", "b=rae:sigma"], "cannot read 'sigma' in 'b=rae:sigma': wanted VARIANT or NAME="),
    "no-variant-under-a-name": (["compare", "b="], "cannot read 'b=': wanted VARIANT or NAME=VARIANT:option=value"),
    "no-such-option-under-a-name": (["compare", "b=rae:gamma=1"], "'gamma' is not an option of b: wanted sigma"),
    "no-such-contestant": (["compare", "rae", "--set", "iwae.sigma=1"], "'iwae.sigma' is for no contestant: wanted"),
    "no-seeds": (["compare", "rae", "--seeds", 0], "--seeds"),
    "no-jobs": (["compare", "rae", "--jobs", 0], "--jobs"),
    "unknown-data": (["train", "rae", "--data", "mnisst"], "'mnisst': wanted digits, mnist, fashion_mnist, cifar10,"),
    "unknown-suffix": (["train", "rae", "--data", "x.xlsx"], ".npy, .npz, .csv, .parquet"),
    "unknown-option": (["train", "rae", "--epoch", 3], "No such option: --epoch"),
    "no-variant": (["train"], "Missing argument 'VARIANT'"),
    "no-run": (["evaluate"], "Missing argument 'RUN'"),
    "no-epochs": (["train", "rae", "--epochs", 0], "--epochs"),
    "no-codes": (["train", "rae", "--z-dim", 0], "--z-dim"),
    "no-particles": (["evaluate", "run", "-K", 0], "--num-particles"),
    "no-samples": (["sample", "run", "--count", 0], "--count"),
    "one-datum": (["train", "rae", "--limit", 1], "--limit"),
    "no-number": (["train", "rae", "--epochs", "many"], "--epochs"),
    "unknown-scale": (["train", "rae", "--scale", "log"], "--scale"),
    "unknown-schedule": (["train", "rae", "--schedule", "steps"], "--schedule"),
    "unknown-picture": (["sample", "run", "--out", "x.jpeg"], "a file ending in .npy or .png, got x.jpeg"),
    "no-equals": (["train", "rae", "--set", "sigma"], "'sigma' is not OPTION=VALUE"),
    "no-such-option-of-the-variant": (["train", "rae", "--set", "gamma=1"], "'gamma' is not an option of rae: wanted"),
    "no-such-option-of-any-variant": (
        ["compare", "rae", "beta_vae", "--set", "gamma=1"],
        "'gamma' is not an option of rae, beta_vae: wanted",
    ),
    "a-value-of-the-wrong-type": (["compare", "sigma_vae", "rae", "--set", "sigma=[]"], "--set"),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE.values(), ids=USAGE)
def test_a_usage_error_ends_with_2_and_says_what_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, list(map(str, arguments)))
    said = " ".join(ran.stderr.split())

    assert ran.exit_code == 2
    assert message in said
    assert ran.stdout == ""
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


# Failures end with 1.

FAILURES: dict[str, tuple[list[Any], str]] = {
    "no-file": (["train", "rae", "--data", "missing.csv"], "there is no file missing.csv"),
    "not-finite": (["train", "rae", "--data", "gap.csv"], "column 'b' holds nan in data row 2"),
    "text": (["train", "rae", "--data", "text.csv"], "columns name are not real numbers"),
    "empty-array": (["train", "rae", "--data", "empty.npy"], "empty.npy"),
    "outside-support": (["train", "bernoulli_vae", "--data", "real.csv"], "outside the support of Bernoulli"),
    "rate": (["train", "rae", "--data", "real.csv", "--lr", "nan"], "lr must be positive and finite, got nan"),
    "option-out-of-range": (["train", "rae", "--data", "real.csv", "--set", "sigma=-1"], "positive and finite, got -1"),
    "divergence": (["train", "sigma_vae", "--data", "real.csv", "--lr", 1e30], "Try a smaller lr"),
    "below-a-file": (["train", "rae", "--data", "real.csv", "--out", "real.csv/a/b"], "cannot write to real.csv/a"),
    "compare-below-a-file": (["compare", "rae", "--data", "real.csv", "--out", "real.csv/a"], "cannot write to"),
    "compare-on-a-file": (["compare", "rae", "--data", "real.csv", "--out", "real.csv"], "cannot write to real.csv"),
    "sample-below-a-file": (["sample", "rae", "--out", "real.csv/x.npy"], "cannot write to real.csv"),
    "no-picture": (["sample", "rae", "--out", "x.png"], "a .png shows images, and a datum has shape [3]"),
    "no-checkpoint": (["evaluate", "folder"], "folder is no checkpoint"),
    "nowhere": (["sample", "nowhere"], "nowhere is no checkpoint"),
    "forgotten-data": (["evaluate", "rae"], "rae does not say what it was trained on: name --data"),
    "other-shape": (["evaluate", "rae", "--data", "digits"], "a datum has shape [1, 8, 8], the model wants [3]"),
    "components": (["evaluate", "rae", "--data", "real.csv", "--components", "few"], "'held_out' or 'bic', got 'few'"),
    "too-many": (["evaluate", "rae", "--data", "real.csv", "--components", 99], "fewer components"),
    "features": (["evaluate", "rae", "--data", "real.csv", "--features", "vgg"], "existing .onnx file, got 'vgg'"),
    "not-downloaded": (["train", "rae", "--data", "mnist", "--data-root", "real.csv/a"], "name another --data-root"),
}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder with good and bad data, and a checkpoint that does not say what data it was trained on."""
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"{i},{i * i % 7},{-i}" for i in range(20))
    Path("real.csv").write_text(f"a,b,c\n{rows}\n")
    Path("gap.csv").write_text("a,b\n1,2\n3,\n5,6\n")
    Path("text.csv").write_text("a,name\n1,x\n3,y\n")
    Path("empty.npy").touch()
    Path("folder").mkdir()
    save("rae", VARIANTS["rae"]((3,), 2))
    return tmp_path


@pytest.mark.parametrize(("arguments", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failure_ends_with_1_and_one_line(
    ppl_vae: Callable[..., Ran], folder: Path, arguments: list[Any], message: str
) -> None:
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    ran = ppl_vae(*arguments, *(["--epochs", 2, "--quiet"] if arguments[0] in ("train", "compare") else []))

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("ppl-vae: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize(
    "option",
    ["likelihood=Gaussian", "encoder=3", "prior=1", "kl_weight=2", "loss=1", "decoder=mlp", "x_shape=[3]"],
)
def test_a_part_cannot_be_set_by_its_name(ppl_vae: Callable[..., Ran], folder: Path, option: str) -> None:
    """Parts are objects, which cannot be given on the command line."""
    ran = ppl_vae("train", "sigma_vae", "--data", "real.csv", "--epochs", 1, "--quiet", "--set", option)

    assert ran.code == 2
    assert "--set" in ran.err


def test_a_layer_that_is_not_there_is_named(ppl_vae: Callable[..., Ran], folder: Path) -> None:
    ran = ppl_vae("train", "l2_vae", "--data", "real.csv", "--epochs", 1, "--quiet", "--set", 'layers=["encoder"]')

    assert ran.code in (1, 2)
    assert "'encoder'" in ran.err or "`encoder`" in ran.err


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_place_that_cannot_be_written_is_refused_before_training(
    ppl_vae: Callable[..., Ran], folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Otherwise, the time of the training would be lost."""
    for name in ("ppl_vae.cli.training.fit", "ppl_vae.studies.executors.run_cell"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("trained"))
    Path("folder", "rae").mkdir()
    Path("folder", "rae", "thesis").write_text("years of work")
    ran = ppl_vae(command, "rae", "--data", "real.csv", "--quiet", "--out", "folder/rae")

    assert ran.code == 1
    assert ("rae exists and is no checkpoint" in ran.err) == (command == "train")
    assert ("rae holds something else than a study" in ran.err) == (command == "compare")
    assert [path.name for path in Path("folder", "rae").iterdir()] == ["thesis"]


@pytest.mark.process
def test_checks_hold_under_optimisation(table: Path, tmp_path: Path) -> None:
    """In a process under ``python -O``, which drops assertions."""
    command = ("train", "bernoulli_vae", "--data", str(table), "--out", str(tmp_path / "out"))
    ran = subprocess.run([sys.executable, "-O", "-m", "ppl_vae", *command], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("ppl-vae: x holds ")
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()
