"""Do Pyro's own tests and examples pass when ``pyro.infer.SVI`` is replaced by ours, and how fast are they?

    python -m ppl_vae.experiments.pyro_suite PATH_TO_PYRO [--only NAME ...] [--data-root FOLDER] [--jobs 2] [--quick]

PATH_TO_PYRO is a checkout of Pyro's repository, of which nothing is copied. Each test file and each example runs in a
process of its own, first with Pyro as it is and then with ``pyro.infer.SVI`` replaced by ``ppl_vae.SVI`` before the
file is imported. Both use the Pyro of the checkout and start every test from the same seed. Tests that pass
under Pyro's SVI and make one are repeated under ours, and have to pass there too.

For every SVI object the table says whether its steps ran from a graph or eagerly, and why. A step ran from a graph if
no ``poutine.trace`` was entered during it. Time is that spent in ``SVI.step``, summed over tests that pass under both.
The losses of the first ten steps of every SVI object have to agree within a thousandth too: they part where ours takes
another step than Pyro's, and a test may pass all the same.

Examples that need MNIST look for ``MNIST/raw`` in --data-root (or PYRO_SUITE_DATA), in torchvision's layout, and are
entered as "no data" without it. The chorales of ``dmm.py`` and the faces of ``sparse_gamma_def.py`` are replaced by
random data of the same layout where ``jsb_chorales.pkl`` and ``faces_training.csv`` are not there: "stand-in".

The whole takes hours, for many of Pyro's tests take thousands of steps. With --quick each test ends, as passed, after
20 steps of SVI: this finds what ours refuses and where losses differ, not whether the inference arrives.

Pyro's suite makes warnings errors. FutureWarnings are ignored here, for newer versions of torch give some that no SVI
is the cause of, and both sides would fail.

A stopped run resumes: what each test did is kept in --work, in a folder for this Pyro, this torch and this
``ppl_vae/svi``. Results are written to pyro_suite.json (every test) and pyro_suite.csv (one row per file or example).
"""

import argparse
import csv
import faulthandler
import hashlib
import json
import math
import os
import pickle
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.trace_messenger import TraceMessenger

import ppl_vae

SIDES = ("Pyro", "ours")
COMPARED = 10  # steps of each SVI object whose losses are compared
AGREED = 1e-3  # relative difference of these losses that float32 and ten steps may make of another order of sums
QUICK = 20  # steps of all SVI objects together after which --quick ends a test
TESTS = (
    "tests/infer/test_inference.py",
    "tests/infer/test_gradient.py",
    "tests/infer/test_multi_sample_elbos.py",
    "tests/infer/test_abstract_infer.py",
    "tests/infer/test_elbo_mapdata.py",
    "tests/infer/test_predictive.py",
    "tests/infer/test_jit.py",
    "tests/infer/test_valid_models.py",
    "tests/infer/test_enum.py",
    "tests/infer/test_autoguide.py",
    "tests/infer/autoguide/test_inference.py",
    "tests/infer/reparam/test_split.py",
    "tests/infer/reparam/test_structured.py",
    "tests/optim/test_optim.py",
    "tests/nn/test_module.py",
    "tests/poutine/test_poutines.py",
    "tests/contrib/easyguide/test_easyguide.py",
    "tests/integration_tests/test_conjugate_gaussian_models.py",
    "tests/integration_tests/test_tracegraph_elbo.py",
)
EXAMPLES = {  # command lines, below the folder examples, and the data that each needs
    "vae/vae.py --num-epochs=1": "MNIST",
    "vae/vae_comparison.py --num-epochs=1 --skip_eval": "MNIST",
    "vae/ss_vae_M2.py --num-epochs=1": "MNIST",
    "vae/ss_vae_M2.py --num-epochs=1 --aux-loss": "MNIST",
    "vae/ss_vae_M2.py --num-epochs=1 --enum-discrete=sequential": "MNIST",
    "cvae/main.py --num-quadrant-inputs=1 --num-epochs=1": "MNIST",
    "dmm.py --num-epochs=3": "chorales",
    "dmm.py --num-epochs=2 --num-iafs=1": "chorales",
    "dmm.py --num-epochs=1 --tmcelbo --tmc-num-samples=2": "chorales",
    "lda.py --num-steps=50 --num-words=100 --num-docs=100 --num-words-per-doc=8": "",
    "sparse_gamma_def.py --num-epochs=20 --eval-particles=2 --eval-frequency=10 --guide custom": "faces",
    "sparse_gamma_def.py --num-epochs=20 --eval-particles=2 --eval-frequency=10 --guide auto": "faces",
    "sparse_gamma_def.py --num-epochs=20 --eval-particles=2 --eval-frequency=10 --guide easy": "faces",
    "contrib/epidemiology/sir.py --nojit -np=128 -ss=50 -n=4 -d=20 -p=1000 -f 2 --svi": "",
    "contrib/epidemiology/regional.py --nojit -ss=50 -n=4 -r=3 -d=20 -p=1000 -f 2 --svi": "",
    "contrib/cevae/synthetic.py --num-epochs=1": "",
    "contrib/autoname/mixture.py --num-epochs=20": "",
    "contrib/autoname/scoping_mixture.py --num-epochs=20": "",
    "contrib/autoname/tree_data.py --num-epochs=20": "",
    "contrib/mue/ProfileHMM.py --test --small --no-plots --no-save": "",
    "capture_recapture/cjs.py --num-steps=20 -m 1": "",
    "eight_schools/svi.py --num-epochs=50": "",
    "hmm.py --num-steps=5 --truncate=10 --model=1": "chorales",
    "minipyro.py --backend=pyro": "",
    "toy_mixture_model_discrete_enumeration.py --num-steps=20": "",
}
FILES = {"MNIST": "MNIST/raw", "chorales": "jsb_chorales.pkl", "faces": "faces_training.csv"}


class Job(NamedTuple):
    """One test file or example under one SVI, as the process that runs it is told."""

    side: str = ""
    name: str = ""
    log: str = ""
    data: str = ""
    limit: float = math.inf
    keyword: str = ""
    quick: bool = False
    wanted: list[str] | None = None  # None: every test
    done: tuple[str, ...] = ()


# The process of one job: what is patched and what is noted.


class EnoughSteps(Exception):
    """Ends a test under --quick."""


class Made:
    """An SVI object and what its steps did."""

    def __init__(self, svi: Any) -> None:
        self.svi = svi
        self.losses: list[list[float]] = []
        self.seconds: list[float] = []
        self.from_graph = 0
        self.returned = ""

    def row(self) -> dict[str, Any]:
        """The figures of this object, for JSON."""
        return {
            "steps": len(self.seconds),
            "from graph": self.from_graph,
            "seconds": sum(self.seconds),
            "reason": getattr(self.svi, "reason", None),
            "returned": self.returned,
            "losses": self.losses,
        }


class Watch:
    """Replaces SVI, notes what every SVI object does, and keeps a log; a plugin of pytest as well.

    Args:
        job: What this process runs.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.made: dict[int, Made] = {}
        self.traces = 0
        self.outcome: dict[str, Any] = {}

    def install(self) -> None:
        """Watch the SVI of this side, and put ours in the place of Pyro's if the side is ours."""
        stock, family = pyro.infer.SVI, pyro.infer.SVI if self.job.side == "Pyro" else ppl_vae.SVI
        self._watch(family)
        for module in [found for name, found in sys.modules.items() if name.partition(".")[0] == "pyro"]:
            if vars(module).get("SVI") is stock:
                vars(module)["SVI"] = family

    def _watch(self, family: Any) -> None:
        start, step, enter = family.__init__, family.step, TraceMessenger.__enter__

        @wraps(start)
        def noted_start(svi: Any, *args: Any, **kwargs: Any) -> None:
            start(svi, *args, **kwargs)
            self.made[id(svi)] = Made(svi)

        @wraps(step)
        def noted_step(svi: Any, *args: Any, **kwargs: Any) -> Any:
            if self.job.quick and sum(len(made.seconds) for made in self.made.values()) >= QUICK:
                raise EnoughSteps
            traces, begin = self.traces, time.perf_counter()
            loss = step(svi, *args, **kwargs)
            made = self.made.setdefault(id(svi), Made(svi))
            made.seconds.append(time.perf_counter() - begin)
            made.from_graph += self.traces == traces
            made.returned = kind_of(loss)
            if len(made.losses) < COMPARED:
                made.losses.append(numbers(loss))
            return loss

        def counted(messenger: Any) -> Any:
            self.traces += 1
            return enter(messenger)

        family.__init__, family.step = noted_start, noted_step
        messenger_class: Any = TraceMessenger
        messenger_class.__enter__ = counted

    def start(self, test: str) -> None:
        """Seed, arm the limit of time and note that a test begins."""
        pyro.set_rng_seed(0)
        self.made.clear()
        self.outcome = outcome(test)
        faulthandler.dump_traceback_later(self.job.limit, exit=True, file=2)
        append(self.job.log, {"start": test})

    def end(self) -> None:
        """Note what the test did."""
        faulthandler.cancel_dump_traceback_later()
        append(self.job.log, self.outcome | {"svis": [made.row() for made in self.made.values()]})
        self.made.clear()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests that are wanted and not yet done."""
        wanted, done = self.job.wanted and set(self.job.wanted), set(self.job.done)
        items[:] = [item for item in items if item.nodeid not in done and (wanted is None or item.nodeid in wanted)]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin a test."""
        self.start(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Read the outcome of setup, call and teardown."""
        if report.when == "call":
            self.outcome["seconds"] = report.duration
        if report.outcome != "passed" and EnoughSteps.__name__ not in last_line(report):
            word = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            self.outcome |= {"outcome": word, "message": last_line(report)}
        if report.when == "teardown":
            self.end()


def numbers(loss: Any) -> list[float]:
    """The loss of a step as a list: of one number, or of several where the estimator returns several."""
    parts = loss if isinstance(loss, tuple | list) else [loss]
    return [number for part in parts for number in torch.as_tensor(part).flatten().tolist()]


def kind_of(loss: Any) -> str:
    """What a step returned: "number", for a tensor of shape [] as well, or how many parts or which shape."""
    if isinstance(loss, tuple | list):
        return f"{len(loss)} parts"
    shape = tuple(getattr(loss, "shape", ()))
    return f"shape {shape}" if shape else "number"


def last_line(report: Any) -> str:
    """Why a test did not pass, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr or getattr(report, "wasxfail", ""))
    return str(text).strip().partition("\n")[0][:300]


def outcome(test: str, word: str = "passed", message: str = "") -> dict[str, Any]:
    """What a test did, before anything is noted."""
    return {"test": test, "outcome": word, "seconds": 0.0, "message": message, "svis": []}


def append(log: str | Path, row: dict[str, Any]) -> None:
    """Add a line to a log; it starts with a newline, for the line before it may have been cut off."""
    with Path(log).open("a") as file:
        file.write("\n" + json.dumps(row) + "\n")


def child() -> None:
    """Run the job that stands on the standard input, as JSON."""
    job = Job(**json.load(sys.stdin))
    watch = Watch(job)
    watch.install()
    if job.name in EXAMPLES:
        run_example(job, watch)
    else:
        import pytest

        options = ["-q", "-p", "no:cacheprovider", "-k", job.keyword, "-W", "ignore::FutureWarning"]
        status = pytest.main([job.name, *options], plugins=[watch])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            sys.exit(status)
    append(job.log, {"end": job.name, "whole": not job.keyword})


def run_example(job: Job, watch: Watch) -> None:
    """Run an example as a program, with its data from ``job.data``."""
    from pyro.contrib.examples import util

    mnist: Any = util.MNIST
    util.get_data_directory = lambda filepath=None: job.data
    mnist.raw_folder = property(lambda dataset: str(Path(job.data) / FILES["MNIST"]))
    for absent in ("visdom", "wget"):  # imported at the top, used for plots and downloads alone
        sys.modules.setdefault(absent, stub(absent))
    path, *arguments = job.name.split()
    program = str(Path.cwd() / "examples" / path)
    sys.argv[:], sys.path[:0] = [program, *arguments], [str(Path(program).parent)]
    watch.start(job.name)
    begin = time.perf_counter()
    try:
        runpy.run_path(program, run_name="__main__")
    except EnoughSteps:
        pass
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever it is belongs into the table
        if not (isinstance(error, SystemExit) and not error.code):
            message = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
            watch.outcome |= {"outcome": "failed", "message": message}
    watch.outcome["seconds"] = time.perf_counter() - begin
    watch.end()


def stub(name: str) -> ModuleType:
    """An empty module, for one that an example imports and does not need."""
    module: Any = ModuleType(name)
    module.Visdom = object
    return module


# The process that starts the others and reads their logs.


class Log(NamedTuple):
    """What a log says: outcomes by test, the test that was running at the end, and whether the file was finished."""

    results: dict[str, dict[str, Any]]
    pending: str | None
    ended: bool
    whole: bool


def read(path: Path) -> Log:
    """Read a log; a line that was cut off is left out."""
    results: dict[str, dict[str, Any]] = {}
    pending, ended, whole = None, False, False
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line) if line else {}
        except json.JSONDecodeError:
            continue
        if "start" in row:
            pending, ended = row["start"], False
        elif "test" in row:
            pending, results[row["test"]] = None, row
        elif "end" in row:
            ended, whole = True, row["whole"]
    return Log(results, pending, ended, whole)


class Suite:
    """Runs jobs and keeps their logs.

    Args:
        checkout: Pyro's repository.
        work: Where logs, data and copies of the examples are kept.
        data_root: Where MNIST may lie; None if nowhere.
        template: The limit of time, pytest's ``-k`` and ``--quick`` of every job.
    """

    def __init__(self, checkout: Path, work: Path, data_root: Path | None, template: Job) -> None:
        self.checkout, self.work, self.template = checkout, work, template
        self.environment = environment(checkout)
        self.data = work / "data"
        self.kinds = lay_out(data_root, self.data)

    def log(self, side: str, name: str) -> Path:
        """Where the log of a job is; the folder changes with everything that may change the outcome."""
        parts = [side, str(self.template.quick), json.dumps(self.environment, sort_keys=True)]
        if side == "ours":
            parts += [path.read_text() for path in sorted((Path(ppl_vae.__file__).parent / "svi").glob("*.py"))]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]
        stem = "".join(letter if letter.isalnum() else "_" for letter in name)
        return self.work / f"{side}-{digest}" / f"{stem}.jsonl"

    def run(self, name: str) -> None:
        """Run one file or example under both."""
        if self.kinds.get(EXAMPLES.get(name, ""), "") == "no data":
            return
        for side in SIDES:
            self._attend(
                self.template._replace(side=side, name=name, log=str(self.log(side, name)), data=str(self.data))
            )
            print(f"{side:<6}{name}: {dict(outcomes(read(self.log(side, name)).results.values()))}", flush=True)

    def _attend(self, job: Job) -> None:
        """Start the job's process until every test has an outcome: one that ends the process is noted."""
        path = Path(job.log)
        path.parent.mkdir(parents=True, exist_ok=True)
        while (job := self._remaining(job)).wanted != [] and not (job.wanted is None and read(path).whole):
            status = self._start(job, path.with_suffix(".out"))
            log = read(path)
            if log.pending:
                message = f"its process ended with status {status}, or it ran for more than {job.limit:g} s"
                append(path, outcome(log.pending, "stopped", message))
            elif not log.ended:
                message = (path.with_suffix(".out").read_text().strip().splitlines() or [""])[-1][:300]
                append(path, outcome(job.name, "error", message))
                return
            elif job.wanted is None or job.keyword:
                return

    def _remaining(self, job: Job) -> Job:
        """The job without what is done; under ours, tests that passed and made an SVI under Pyro's."""
        done = read(Path(job.log)).results
        if job.side == "Pyro":
            return job._replace(done=tuple(done), wanted=[] if job.name in done else None)
        theirs = read(self.log("Pyro", job.name)).results
        made = [test for test, row in theirs.items() if row["svis"] and row["outcome"] == "passed"]
        return job._replace(wanted=[test for test in made if test not in done])

    def _start(self, job: Job, output: Path) -> int:
        paths = [str(self.checkout), str(Path(ppl_vae.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        quiet = {"MPLBACKEND": "agg", "TQDM_DISABLE": "1"}
        variables = os.environ | quiet | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-c", f"from {__package__}.pyro_suite import child; child()"]
        with tempfile.TemporaryDirectory() as folder, output.open("w") as file:
            if job.name in EXAMPLES:  # they write beside themselves
                shutil.copytree(self.checkout / "examples", Path(folder) / "examples")
            where = folder if job.name in EXAMPLES else str(self.checkout)
            start = partial(subprocess.run, input=json.dumps(job._asdict()), text=True, env=variables, cwd=where)
            return start(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def environment(checkout: Path) -> dict[str, str]:
    """What the outcomes belong to."""
    commit = ""
    if (checkout / ".git").exists():
        asked = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    shown = "import pyro; print(pyro.__version__)"
    asked = [sys.executable, "-c", shown]
    version = subprocess.run(asked, capture_output=True, text=True, cwd=checkout, check=True).stdout.strip()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"pyro": version, "commit": commit, "machine": platform.machine(), **versions}


def lay_out(data_root: Path | None, folder: Path) -> dict[str, str]:
    """Copy the data that are there, draw stand-ins of those that can be drawn, and say which is which."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"": "its own"}
    for name, file in FILES.items():
        source, target = data_root and data_root / file, folder / file
        marker = target.with_name(target.name + ".stand-in")
        if source and source.exists() and (marker.exists() or not target.exists()):
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy(source, target)
            marker.unlink(missing_ok=True)
        if not target.exists() and name in STAND_INS:
            STAND_INS[name](target)
            marker.touch()
        kinds[name] = "stand-in" if marker.exists() else name if target.exists() else "no data"
    return kinds


def chorales(path: Path) -> None:
    """Sequences of chords: four of 88 notes at a time."""
    generator = torch.Generator().manual_seed(0)
    data: dict[str, dict[str, Any]] = {}
    for split, count in {"train": 60, "valid": 20, "test": 20}.items():
        lengths = torch.randint(20, 60, (count,), generator=generator)
        chords = [torch.rand(int(length), 88, generator=generator) for length in lengths]
        sequences = [(chord >= chord.topk(4).values[:, -1:]).float() for chord in chords]
        data[split] = {"sequence_lengths": lengths, "sequences": sequences}
    path.write_bytes(pickle.dumps(data))


def faces(path: Path) -> None:
    """Counts of 64 x 64 pixels, 320 rows."""
    import numpy as np

    counts = torch.poisson(torch.full((320, 64 * 64), 50.0), generator=torch.Generator().manual_seed(0))
    np.savetxt(path, counts.numpy(), delimiter=",", fmt="%d")


STAND_INS: dict[str, Callable[[Path], None]] = {"chorales": chorales, "faces": faces}


# What the logs amount to.


def outcomes(rows: Iterable[dict[str, Any]]) -> Counter[str]:
    """How many tests had each outcome."""
    return Counter(row["outcome"] for row in rows)


def way(row: dict[str, Any]) -> str:
    """How the steps of a test ran: "graph", "no step", or why they ran eagerly."""
    stepped = [svi for svi in row["svis"] if svi["steps"]]
    if not stepped:
        return "no step"
    if any(svi["from graph"] for svi in stepped):
        return "graph"
    reasons = [svi["reason"] for svi in stepped if svi["reason"]]
    if reasons:
        return str(reasons[0])
    most = max(svi["steps"] for svi in stepped)
    return "two steps or fewer" if most < 3 else "no graph yet"


def shown(difference: float) -> float | str:
    """A difference of losses for JSON, which has no infinity."""
    return difference if math.isfinite(difference) else "not comparable"


def loss_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """The largest relative difference of losses at the same step, over the first steps of each SVI object.

    It is infinite if the two tests made unequal numbers of SVI objects, took unequal numbers of steps, or if a step
    returned something of another kind: a tensor, say, where Pyro's returns a tuple.
    """
    kinds = [[svi["returned"] for svi in row["svis"]] for row in (theirs, ours)]
    one, two = ([svi["losses"] for svi in row["svis"]] for row in (theirs, ours))
    flat = [[loss for losses in found for step in losses for loss in step] for found in (one, two)]
    if (
        kinds[0] != kinds[1]
        or [len(losses) for losses in one] != [len(losses) for losses in two]
        or len(flat[0]) != len(flat[1])
    ):
        return math.inf
    return max((relative(a, b) for a, b in zip(*flat, strict=True)), default=0.0)


def relative(a: float, b: float) -> float:
    """|a - b| / max(|a|, |b|); equal infinities and two NaN are equal."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return math.inf if math.isnan(difference) else difference


def compare(name: str, data: str, theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """One row of the table, from the outcomes of a file or an example under Pyro's SVI and under ours."""
    passed = {test for test, row in theirs.items() if row["outcome"] == "passed" and row["svis"]}
    both = {test for test in passed if ours.get(test, {}).get("outcome") == "passed"}
    ways = Counter(way(ours[test]) for test in sorted(passed) if test in ours)
    differences = [loss_difference(theirs[test], ours[test]) for test in both]
    eager = {reason: count for reason, count in ways.most_common() if reason not in ("graph", "no step")}
    seconds = [
        sum(svi["seconds"] for test in both for svi in side[test]["svis"] if svi["steps"]) for side in (theirs, ours)
    ]
    return {
        "name": name,
        "data": data,
        "tests that Pyro passes": sum(row["outcome"] == "passed" for row in theirs.values()),
        "of these, with an SVI": len(passed),
        "ours passes": len(both),
        "ours fails": len(passed) - len(both),
        "from a graph": ways["graph"],
        "eagerly": sum(eager.values()),
        "no step": ways["no step"],
        "steps": sum(svi["steps"] for test in both for svi in ours[test]["svis"]),
        "Pyro, s": round(seconds[0], 3),
        "ours, s": round(seconds[1], 3),
        "ours / Pyro": round(seconds[1] / seconds[0], 3) if seconds[0] else "",
        "losses part": sum(difference > AGREED for difference in differences),
        "largest difference of losses": shown(max(differences, default=0.0)),
        "why eagerly": "; ".join(f"{count} x {reason[:160]}" for reason, count in eager.items()),
    }


def details(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> list[dict[str, Any]]:
    """Every test that passed and made an SVI under Pyro's: the outcome under ours, how it ran, the time in steps."""
    rows = []
    for test, row in theirs.items():
        own = ours.get(test, {"outcome": "not run", "message": "", "svis": []})
        if row["svis"] and row["outcome"] == "passed":
            found = {"test": test, "ours": own["outcome"], "way": way(own)}
            if own["outcome"] == "passed":
                difference = loss_difference(row, own)
                found["difference of losses"] = shown(difference)
                own = own if difference <= AGREED else own | {"message": f"losses part by {difference:.2g}, relatively"}
            found |= {"message": own["message"]} if own["message"] else {}
            times = [sum(svi["seconds"] for svi in side["svis"]) for side in (row, own)]
            rows.append({"file": name} | found | {"Pyro, s": round(times[0], 4), "ours, s": round(times[1], 4)})
    return rows


def collect(suite: Suite, names: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The table, and every test behind it."""
    table, tests = [], []
    for name in names:
        theirs, ours = (read(suite.log(side, name)).results for side in SIDES)
        table.append(compare(name, suite.kinds[EXAMPLES.get(name, "")], theirs, ours))
        tests += details(name, theirs, ours)
    return table, tests


def write(path: Path, written: dict[str, Any]) -> None:
    """Write the JSON and, beside it, the CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=1) + "\n")
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(written["table"][0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(written["table"])


def chosen_names(only: list[str]) -> list[str]:
    """The files and examples whose names contain one of ``only``; all if there is none."""
    names = [*TESTS, *EXAMPLES]
    return [name for name in names if not only or any(part in name for part in only)]


def main() -> None:
    """Run, print, write; the exit status is 1 if a test that passes under Pyro's SVI fails or its losses part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of Pyro's repository")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of test files and examples")
    parser.add_argument("--keyword", default="", help="an expression of pytest's -k, to try a few tests")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("PYRO_SUITE_DATA"), help="where MNIST/raw is")
    parser.add_argument("--quick", action="store_true", help=f"end each test after {QUICK} steps of SVI")
    parser.add_argument("--jobs", type=int, default=1, help="files at a time; times are less exact with more than one")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one test or example may take")
    parser.add_argument("--work", type=Path, default=Path("runs/pyro_suite"), help="where a stopped run resumes from")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    names, checkout = chosen_names(chosen.only), chosen.checkout.resolve()
    if not (checkout / "tests" / "infer").is_dir() or not names:
        parser.error(f"{checkout} has no folder tests/infer" if names else f"no name contains {chosen.only}")
    template = Job(limit=chosen.limit, keyword=chosen.keyword, quick=chosen.quick)
    suite = Suite(checkout, chosen.work.resolve(), chosen.data_root, template)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(suite.run, names))
    table, tests = collect(suite, names)
    failed = [row for row in tests if "message" in row]
    settings = {"only": chosen.only, "keyword": chosen.keyword, "limit": chosen.limit, "jobs": chosen.jobs}
    path = chosen.out / ("pyro_suite-quick.json" if chosen.quick else "pyro_suite.json")
    write(path, {**settings, **suite.environment, "table": table, "tests": tests})
    for row in failed:
        print(f"{'FAILS' if row['ours'] != 'passed' else 'PARTS':<7}{row['test']}: {row['message']}")
    print(
        f"\n{len(tests) - len(failed)} of {len(tests)} that pass with an SVI of Pyro's pass with ours, with its losses"
    )
    print(f"wrote {path} and its .csv", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
