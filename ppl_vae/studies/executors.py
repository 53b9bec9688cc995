"""Where cells run: in this process, in local processes, or on an executor that the user hands over."""

import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
import types
import warnings
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from ..data.arrays import reason_of
from ..data.data_set import Data
from ..evaluation.features import Features
from .cells import Cell
from .work import FAILED, Finished, run_cell

__all__ = ["Task", "run_all"]

POLL = 0.2  # seconds between two looks at the futures of an executor that is not of concurrent.futures
DIED = "its process died; memory may have run out, or the study does not stand under if __name__ == '__main__'"


Outcomes = Generator[tuple[Cell, Finished], None, None]


class Task(NamedTuple):
    """A cell that is to be run, with what ``run_cell`` needs."""

    cell: Cell
    features: Features
    threads: int


class Parcel(NamedTuple):
    """A task as it is sent to another process. Cells on the same data share the bytes of the data."""

    cell: bytes
    data: bytes
    features: bytes
    threads: int


class Sent(NamedTuple):
    """A task with its parcel."""

    task: Task
    parcel: Parcel


def run_all(tasks: Sequence[Task], jobs: int, executor: Executor | None) -> Outcomes:
    """Run cells, and yield the outcome of each as soon as it is there.

    A cell that cannot be sent to another process, for example because of a lambda, runs in this process.

    Args:
        tasks: The cells.
        jobs: The number of local processes. With one job and without an executor, all cells run in this process.
        executor: An executor to run the cells on.
    """
    sent: list[Sent] = []
    here = list(tasks)
    if executor is not None or jobs > 1:
        sent, here = _packed(tasks)
    if sent and executor is not None:
        yield from _on_executor(sent, executor)
    elif sent:
        yield from _in_processes(sent, jobs)
    for task in here:
        yield task.cell, run_cell(*task)


# Parcels.


class _Packer(pickle.Pickler):
    """A pickler that leaves out the data ``apart``, and refuses what another process would not find in ``__main__``."""

    def __init__(self, buffer: io.BytesIO, apart: Data | None) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self.apart = apart

    def persistent_id(self, value: Any) -> str | None:
        return "data" if value is self.apart and value is not None else None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | types.FunctionType) and value.__module__ == "__main__":
            raise pickle.PicklingError(f"{value.__qualname__} stands in __main__: move it into a module")
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(self, content: bytes, data: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.data = data

    def persistent_load(self, name: Any) -> Data:
        found: Data = pickle.loads(self.data)
        return found


def _pack(value: Any, apart: Data | None = None) -> bytes:
    buffer = io.BytesIO()
    _Packer(buffer, apart).dump(value)
    return buffer.getvalue()


def _packed(tasks: Sequence[Task]) -> tuple[list[Sent], list[Task]]:
    """The tasks that can be sent, with their parcels, and those that cannot."""
    sent, here, reasons = [], [], []
    parts: dict[int, bytes] = {}  # the data and the features, which many cells share
    for task in tasks:
        data = task.cell.data
        try:
            if id(data) not in parts:
                parts[id(data)] = _pack(data)
            if id(task.features) not in parts:
                parts[id(task.features)] = _pack(task.features)
            parcel = Parcel(_pack(task.cell, apart=data), parts[id(data)], parts[id(task.features)], task.threads)
        except Exception as error:  # noqa: BLE001 - pickle passes on whatever a user's own object raises
            here.append(task)
            reasons.append(reason_of(error))
        else:
            sent.append(Sent(task, parcel))
    if here:
        warnings.warn(
            f"{len(here)} of {len(tasks)} cells run in the process of the study, because they cannot be sent to "
            f"another one, {here[0].cell.label} for example: {reasons[0]}",
            stacklevel=4,
        )
    return sent, here


def run_parcel(parcel: Parcel) -> Finished:
    """Run the cell in a parcel. A worker calls this."""
    cell = _Unpacker(parcel.cell, parcel.data).load()
    return run_cell(cell, pickle.loads(parcel.features), parcel.threads)


# Executors.


def _on_executor(waiting: Sequence[Sent], executor: Executor) -> Outcomes:
    """Submit all cells at once. The executor decides what runs when."""
    running: dict[Any, Task] = {}
    try:
        for task, parcel in waiting:
            try:
                running[executor.submit(run_parcel, parcel)] = task
            except Exception as error:  # noqa: BLE001 - an executor that is broken or closed
                yield task.cell, _lost(task, f"the executor did not take it: {_named(error)}")
        while running:
            for future in _ended(running):
                task = running.pop(future)
                yield task.cell, _outcome(future, task)
    finally:
        for future in running:
            future.cancel()


def _ended(futures: Iterable[Any]) -> list[Any]:
    """Wait until some futures have ended, and return these."""
    futures = list(futures)
    if all(isinstance(future, Future) for future in futures):
        return list(wait(futures, return_when=FIRST_COMPLETED).done)
    while True:
        ended = [future for future in futures if future.done()]
        if ended:
            return ended
        time.sleep(POLL)


def _outcome(future: Any, task: Task) -> Finished:
    """The outcome of a future. An error of the executor is the reason in the record."""
    try:
        finished: Finished = future.result()
    except BrokenProcessPool:
        return _lost(task, DIED)
    except Exception as error:  # noqa: BLE001 - executors have their own errors, for a lost worker for example
        return _lost(task, f"it did not come back from its process: {_named(error)}")
    return finished


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {reason_of(error)}"


def _lost(task: Task, reason: str) -> Finished:
    record = {"key": task.cell.key, "declaration": task.cell.declaration, "status": FAILED, "reason": reason}
    return Finished({**record, "threads": task.threads, "seconds": 0.0}, {})


def _in_processes(tasks: Sequence[Sent], jobs: int) -> Outcomes:
    """Run cells in ``jobs`` local processes.

    If a process dies, for example because memory ran out, the cells that were running are repeated one by one, each in
    a process of its own, so that the cell that kills its process is found, and the others go on.
    """
    waiting = list(tasks)
    while waiting:
        running: dict[Future[Finished], Sent] = {}
        pool = _pool(min(jobs, len(waiting)))
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running[pool.submit(run_parcel, waiting[0].parcel)] = waiting[0]
                    waiting.pop(0)
                for future in _ended(running):
                    if isinstance(future.exception(), BrokenProcessPool):
                        raise BrokenProcessPool
                    task = running.pop(future).task
                    yield task.cell, _outcome(future, task)
        except BrokenProcessPool:
            pass
        finally:
            _stop(pool)
        for task, parcel in running.values():
            yield task.cell, _alone(task, parcel)


def _alone(task: Task, parcel: Parcel) -> Finished:
    """Run one cell in a process of its own."""
    pool = _pool(1)
    try:
        return _outcome(pool.submit(run_parcel, parcel), task)
    finally:
        _stop(pool)


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Local processes that start from a fresh interpreter, because a fork would copy the locks of torch's threads."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_prepare_worker)


def _prepare_worker() -> None:
    """End this worker when the process of the study ends, by Ctrl-C or otherwise. It would wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the study ends its workers
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """Wait for the end of the process of the study, and end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _stop(pool: ProcessPoolExecutor) -> None:
    """Stop a pool at once, with the cells that are running."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
