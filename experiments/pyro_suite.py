"""Do Pyro's own tests and examples pass if ``pyro.infer.SVI`` is replaced by ours, and how fast are they?

    python -m ppl_vae.experiments.pyro_suite PATH_TO_PYRO [--only NAME ...] [--data-root FOLDER] [--jobs 2] [--quick]

PATH_TO_PYRO is a checkout of Pyro's repository, from which nothing is copied into this library. Each test file and
each example runs twice, each time in its own process: first with Pyro as it is, and then with ``pyro.infer.SVI``
replaced by ``ppl_vae.SVI`` before the file is imported. Both runs use the Pyro of the checkout, and start every test
from the same seed. A test that passes with Pyro's SVI and makes an SVI object is repeated with ours, and has to pass
there too. The losses of the first ten steps of every SVI object have to agree to one part in a thousand, because a
test may pass although our steps differ from Pyro's.

For every SVI object the table says whether its steps ran from a graph or eagerly, and why. A step ran from a graph if
no ``poutine.trace`` was entered during it. Times are those spent in ``SVI.step``, summed over the tests that pass on
both sides.

Examples that need MNIST look for ``MNIST/raw`` in --data-root (or PYRO_SUITE_DATA), in the layout of torchvision.
Without it they are listed as "no data". If ``jsb_chorales.pkl`` (for ``dmm.py``) or ``faces_training.csv`` (for
``sparse_gamma_def.py``) is not there, random data of the same layout take its place, listed as "stand-in".

A full run takes hours, because many of Pyro's tests take thousands of steps. With --quick each test ends after 20
steps of SVI and counts as passed. This finds steps that ours refuses and losses that differ. It does not show whether
the inference converges.

Pyro's test suite turns warnings into errors. FutureWarnings are ignored here, because newer versions of torch raise
some that have nothing to do with SVI, and the tests of both sides would fail.

A run that was stopped can be resumed: the outcome of each test is kept in --work, in a folder for this Pyro, this
torch and this ``ppl_vae/svi``. The results are written to pyro_suite.json (every test) and pyro_suite.csv (one row per
file or example).
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
COMPARED = 10  # the number of first steps of each SVI object whose losses are compared
AGREED = 1e-3  # the relative difference of losses that another order of sums may cause in ten steps of float32
QUICK = 20  # the number of steps, over all SVI objects, after which --quick ends a test
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
EXAMPLES = {  # command lines, relative to the folder examples, with the data that each needs
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
    """One test file or example with one SVI. The process that runs it reads this record.

    Attributes:
        side: "Pyro" or "ours".
        name: The test file or the command line of the example.
        log: The path of the log.
        data: The folder with the data of examples.
        limit: The seconds that one test may take.
        keyword: The expression for pytest's ``-k``.
        quick: Whether a test ends after ``QUICK`` steps.
        wanted: The tests to run. None means all.
        done: The tests that are left out, because they already have an outcome.
    """

    side: str = ""
    name: str = ""
    log: str = ""
    data: str = ""
    limit: float = math.inf
    keyword: str = ""
    quick: bool = False
    wanted: list[str] | None = None
    done: tuple[str, ...] = ()


# The process of one job: it replaces SVI and notes what each test does.


class EnoughSteps(Exception):
    """Raised to end a test under --quick."""


class Made:
    """An SVI object, with the losses and times of its steps."""

    def __init__(self, svi: Any) -> None:
        self.svi = svi
        self.losses: list[list[float]] = []
        self.seconds: list[float] = []
        self.from_graph = 0
        self.returned = ""

    def row(self) -> dict[str, Any]:
        """The record of this object in a log."""
        return {
            "steps": len(self.seconds),
            "from graph": self.from_graph,
            "seconds": sum(self.seconds),
            "reason": getattr(self.svi, "reason", None),
            "returned": self.returned,
            "losses": self.losses,
        }


class Watch:
    """Replaces SVI, notes what every SVI object does, and writes a log. It is also a plugin of pytest.

    Args:
        job: The job of this process.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.made: dict[int, Made] = {}
        self.traces = 0
        self.outcome: dict[str, Any] = {}

    def install(self) -> None:
        """Watch the SVI of this side. If the side is ours, our SVI takes the place of Pyro's in Pyro's modules."""
        stock = pyro.infer.SVI
        family = stock if self.job.side == "Pyro" else ppl_vae.SVI
        self._watch(family)
        for module in [found for name, found in sys.modules.items() if name.partition(".")[0] == "pyro"]:
            if vars(module).get("SVI") is stock:
                vars(module)["SVI"] = family

    def _watch(self, family: Any) -> None:
        """Wrap the methods of an SVI class, and the entry of Pyro's trace, so that each call is noted."""
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
        """Begin a test: set the seed, start the limit of time and write to the log."""
        pyro.set_rng_seed(0)
        self.made.clear()
        self.outcome = outcome(test)
        faulthandler.dump_traceback_later(self.job.limit, exit=True, file=2)
        append(self.job.log, {"start": test})

    def end(self) -> None:
        """End a test: write its outcome and its SVI objects to the log."""
        faulthandler.cancel_dump_traceback_later()
        append(self.job.log, self.outcome | {"svis": [made.row() for made in self.made.values()]})
        self.made.clear()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests that are wanted and not done."""
        wanted, done = self.job.wanted and set(self.job.wanted), set(self.job.done)
        items[:] = [item for item in items if item.nodeid not in done and (wanted is None or item.nodeid in wanted)]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin a test."""
        self.start(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note the outcome of setup, call and teardown."""
        if report.when == "call":
            self.outcome["seconds"] = report.duration
        if report.outcome != "passed" and EnoughSteps.__name__ not in last_line(report):
            word = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            self.outcome |= {"outcome": word, "message": last_line(report)}
        if report.when == "teardown":
            self.end()


def numbers(loss: Any) -> list[float]:
    """The loss of a step as a list, because some estimators return several numbers."""
    parts = loss if isinstance(loss, tuple | list) else [loss]
    return [number for part in parts for number in torch.as_tensor(part).flatten().tolist()]


def kind_of(loss: Any) -> str:
    """The kind of value that a step returned: "number" (or a tensor of shape []), "3 parts" or "shape (2,)"."""
    if isinstance(loss, tuple | list):
        return f"{len(loss)} parts"
    shape = tuple(getattr(loss, "shape", ()))
    return f"shape {shape}" if shape else "number"


def last_line(report: Any) -> str:
    """One line that says why a test did not pass."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr or getattr(report, "wasxfail", ""))
    return str(text).strip().partition("\n")[0][:300]


def outcome(test: str, word: str = "passed", message: str = "") -> dict[str, Any]:
    """The record of a test in a log, before any SVI object is noted."""
    return {"test": test, "outcome": word, "seconds": 0.0, "message": message, "svis": []}


def append(log: str | Path, row: dict[str, Any]) -> None:
    """Add a line to a log. It starts with a newline, because the line before it may have been cut off."""
    with Path(log).open("a") as file:
        file.write("\n" + json.dumps(row) + "\n")


def child() -> None:
    """Run the job that is read from the standard input, as JSON."""
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
    """Run an example as a program that finds its data in ``job.data``."""
    from pyro.contrib.examples import util

    mnist: Any = util.MNIST
    util.get_data_directory = lambda filepath=None: job.data
    mnist.raw_folder = property(lambda dataset: str(Path(job.data) / FILES["MNIST"]))
    for absent in ("visdom", "wget"):  # examples import these, and use them only for plots and downloads
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
    except (Exception, SystemExit) as error:  # noqa: BLE001  any error is an outcome in the table
        if not (isinstance(error, SystemExit) and not error.code):
            message = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
            watch.outcome |= {"outcome": "failed", "message": message}
    watch.outcome["seconds"] = time.perf_counter() - begin
    watch.end()


def stub(name: str) -> ModuleType:
    """An empty module, to replace a module that an example imports and does not need."""
    module: Any = ModuleType(name)
    module.Visdom = object
    return module


# The parent process: it starts the jobs and reads their logs.


class Log(NamedTuple):
    """The content of a log.

    Attributes:
        results: The record of each test, by its name.
        pending: The test that was running when the log ended. None if there is none.
        ended: Whether the process came to its end.
        whole: Whether it ran all tests of the file, without a keyword.
    """

    results: dict[str, dict[str, Any]]
    pending: str | None
    ended: bool
    whole: bool


def read(path: Path) -> Log:
    """Read a log. A line that was cut off is left out."""
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
        work: The folder for logs and data.
        data_root: The folder in which to look for MNIST, chorales and faces. None if there is none.
        template: A job with the settings that all jobs share.
    """

    def __init__(self, checkout: Path, work: Path, data_root: Path | None, template: Job) -> None:
        self.checkout, self.work, self.template = checkout, work, template
        self.environment = environment(checkout)
        self.data = work / "data"
        self.kinds = lay_out(data_root, self.data)

    def log(self, side: str, name: str) -> Path:
        """The path of a job's log. Its folder depends on the side, the versions, the machine and our code of SVI."""
        parts = [side, str(self.template.quick), json.dumps(self.environment, sort_keys=True)]
        if side == "ours":
            package = Path(ppl_vae.__file__).parent
            parts += [path.read_text() for path in [package / "streams.py", *sorted((package / "svi").glob("*.py"))]]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]
        stem = "".join(letter if letter.isalnum() else "_" for letter in name)
        return self.work / f"{side}-{digest}" / f"{stem}.jsonl"

    def run(self, name: str) -> None:
        """Run one file or example with both SVIs."""
        if self.kinds.get(EXAMPLES.get(name, ""), "") == "no data":
            return
        for side in SIDES:
            log = self.log(side, name)
            self._attend(self.template._replace(side=side, name=name, log=str(log), data=str(self.data)))
            print(f"{side:<6}{name}: {dict(outcomes(read(log).results.values()))}", flush=True)

    def _attend(self, job: Job) -> None:
        """Run a job until every test has an outcome. If a test ends the process of the job, it is started again."""
        path = Path(job.log)
        output = path.with_suffix(".out")
        path.parent.mkdir(parents=True, exist_ok=True)
        job = self._remaining(job)
        while not is_finished(job, read(path)):
            status = self._start(job, output)
            log = read(path)
            if log.pending:
                message = f"its process ended with status {status}, or it ran for more than {job.limit:g} s"
                append(path, outcome(log.pending, "stopped", message))
            elif not log.ended:
                last = (output.read_text().strip().splitlines() or [""])[-1]
                append(path, outcome(job.name, "error", last[:300]))
                return
            elif job.wanted is None or job.keyword:
                return
            job = self._remaining(job)

    def _remaining(self, job: Job) -> Job:
        """The job without the tests that are done. Ours runs the tests that made an SVI and passed with Pyro's."""
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
            if job.name in EXAMPLES:  # examples write files into their own folder
                shutil.copytree(self.checkout / "examples", Path(folder) / "examples")
            where = folder if job.name in EXAMPLES else str(self.checkout)
            start = partial(subprocess.run, input=json.dumps(job._asdict()), text=True, env=variables, cwd=where)
            return start(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def is_finished(job: Job, log: Log) -> bool:
    """Whether no test of a job remains."""
    return log.whole if job.wanted is None else not job.wanted


def environment(checkout: Path) -> dict[str, str]:
    """The machine, and the versions of Pyro, Python and torch, with which the outcomes are obtained."""
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
    """Copy the data that exist, and draw stand-ins for the others if that is possible.

    Returns:
        For each kind of data that an example may need, the word for the table: the name of the data, "stand-in",
        "no data", or "its own" if it needs none.
    """
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
        if marker.exists():
            kinds[name] = "stand-in"
        else:
            kinds[name] = name if target.exists() else "no data"
    return kinds


def chorales(path: Path) -> None:
    """Write random sequences of chords, each of four notes out of 88."""
    generator = torch.Generator().manual_seed(0)
    data: dict[str, dict[str, Any]] = {}
    for split, count in {"train": 60, "valid": 20, "test": 20}.items():
        lengths = torch.randint(20, 60, (count,), generator=generator)
        chords = [torch.rand(int(length), 88, generator=generator) for length in lengths]
        sequences = [(chord >= chord.topk(4).values[:, -1:]).float() for chord in chords]
        data[split] = {"sequence_lengths": lengths, "sequences": sequences}
    path.write_bytes(pickle.dumps(data))


def faces(path: Path) -> None:
    """Write 320 rows of random counts, one for each of 64 x 64 pixels."""
    import numpy as np

    counts = torch.poisson(torch.full((320, 64 * 64), 50.0), generator=torch.Generator().manual_seed(0))
    np.savetxt(path, counts.numpy(), delimiter=",", fmt="%d")


STAND_INS: dict[str, Callable[[Path], None]] = {"chorales": chorales, "faces": faces}


# The table that is made from the logs.


def outcomes(rows: Iterable[dict[str, Any]]) -> Counter[str]:
    """The number of tests with each outcome."""
    return Counter(row["outcome"] for row in rows)


def way(row: dict[str, Any]) -> str:
    """How the steps of a test ran: "graph", "no step", or the reason why they ran eagerly."""
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
    """A difference of losses as it is written to JSON, which has no infinity."""
    return difference if math.isfinite(difference) else "not comparable"


def loss_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """The largest relative difference of losses at the same step, over the first steps of each SVI object.

    It is infinite if the two runs made different numbers of SVI objects, took different numbers of steps, or if a step
    returned another kind of value, such as a tensor in the place of a tuple.
    """
    if layout(theirs) != layout(ours):
        return math.inf
    pairs = zip(all_losses(theirs), all_losses(ours), strict=True)
    return max((relative(a, b) for a, b in pairs), default=0.0)


def layout(row: dict[str, Any]) -> tuple[list[Any], int]:
    """The kind of value and the number of noted losses of each SVI object of a test, and the number of all losses."""
    kinds = [(svi["returned"], len(svi["losses"])) for svi in row["svis"]]
    return kinds, len(all_losses(row))


def all_losses(row: dict[str, Any]) -> list[float]:
    """The noted losses of all steps of all SVI objects of a test."""
    return [loss for svi in row["svis"] for step in svi["losses"] for loss in step]


def relative(a: float, b: float) -> float:
    """|a - b| / max(|a|, |b|). Equal infinities count as equal, and so do two NaN."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return math.inf if math.isnan(difference) else difference


def compare(name: str, data: str, theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """One row of the table, from the outcomes of a file or an example with Pyro's SVI and with ours."""
    passed = {test for test, row in theirs.items() if row["outcome"] == "passed" and row["svis"]}
    both = {test for test in passed if ours.get(test, {}).get("outcome") == "passed"}
    ways = Counter(way(ours[test]) for test in sorted(passed) if test in ours)
    differences = [loss_difference(theirs[test], ours[test]) for test in both]
    eager = {reason: count for reason, count in ways.most_common() if reason not in ("graph", "no step")}
    their_seconds, our_seconds = (sum(seconds(side[test]) for test in both) for side in (theirs, ours))
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
        "Pyro, s": round(their_seconds, 3),
        "ours, s": round(our_seconds, 3),
        "ours / Pyro": round(our_seconds / their_seconds, 3) if their_seconds else "",
        "losses differ": sum(difference > AGREED for difference in differences),
        "largest difference of losses": shown(max(differences, default=0.0)),
        "why eagerly": "; ".join(f"{count} x {reason[:160]}" for reason, count in eager.items()),
    }


def details(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for every test that passed and made an SVI object with Pyro's SVI.

    A row has a message if the test does not pass with ours, or if it passes and its losses differ.
    """
    rows = []
    for test, row in theirs.items():
        if row["outcome"] != "passed" or not row["svis"]:
            continue
        own = ours.get(test, outcome(test, "not run"))
        found = {"file": name, "test": test, "ours": own["outcome"], "way": way(own)}
        message = own["message"]
        if own["outcome"] == "passed":
            difference = loss_difference(row, own)
            found["difference of losses"] = shown(difference)
            message = message if difference <= AGREED else f"the relative difference of losses is {difference:.2g}"
        if message:
            found["message"] = message
        rows.append(found | {"Pyro, s": round(seconds(row), 4), "ours, s": round(seconds(own), 4)})
    return rows


def seconds(row: dict[str, Any]) -> float:
    """The time that a test spent in steps."""
    return sum(svi["seconds"] for svi in row["svis"])


def collect(suite: Suite, names: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the table, and one row per test."""
    table, tests = [], []
    for name in names:
        theirs, ours = (read(suite.log(side, name)).results for side in SIDES)
        table.append(compare(name, suite.kinds[EXAMPLES.get(name, "")], theirs, ours))
        tests += details(name, theirs, ours)
    return table, tests


def write(path: Path, written: dict[str, Any]) -> None:
    """Write everything as JSON, and the table as CSV beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=1) + "\n")
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(written["table"][0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(written["table"])


def chosen_names(only: list[str]) -> list[str]:
    """The files and examples whose names contain one of ``only``. All of them if ``only`` is empty."""
    names = [*TESTS, *EXAMPLES]
    return [name for name in names if not only or any(part in name for part in only)]


def options() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_help = "Folder that has MNIST/raw (default: the variable PYRO_SUITE_DATA)."
    out, out_help = Path(__file__).parent / "results", "Folder of the results (default: %(default)s)."
    parser.add_argument("checkout", type=Path, help="Checkout of Pyro's repository.")
    parser.add_argument("--only", nargs="+", default=[], help="Run files and examples with these parts of names.")
    parser.add_argument("--keyword", default="", help="Expression for pytest's -k, to try a few tests.")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("PYRO_SUITE_DATA"), help=data_help)
    parser.add_argument("--quick", action="store_true", help=f"End each test after {QUICK} steps of SVI.")
    parser.add_argument("--jobs", type=int, default=1, help="Files at a time (default: 1, for exact times).")
    parser.add_argument(
        "--limit", type=float, default=1800.0, help="Seconds per test or example (default: %(default)g)."
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pyro_suite"), help="Folder of the logs (default: %(default)s)."
    )
    parser.add_argument("--out", type=Path, default=out, help=out_help)
    return parser


def main() -> None:
    """Run the suite and write the results. The exit status is 1 if a test fails with ours or its losses differ."""
    parser = options()
    chosen = parser.parse_args()
    names, checkout = chosen_names(chosen.only), chosen.checkout.resolve()
    if not (checkout / "tests" / "infer").is_dir() or not names:
        missing = f"{checkout} has no folder tests/infer: give a checkout of Pyro's repository"
        unknown = f"no test file or example has a name that contains one of {chosen.only}"
        parser.error(missing if names else unknown)
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
        word = "DIFFERS" if row["ours"] == "passed" else "FAILS"
        print(f"{word:<8}{row['test']}: {row['message']}")
    good = len(tests) - len(failed)
    print(f"\nOf {len(tests)} tests that pass with Pyro's SVI, {good} pass with ours and have the same losses.")
    print(f"wrote {path} and its .csv", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
