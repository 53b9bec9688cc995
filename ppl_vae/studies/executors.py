"""Where cells run: in this process, in local processes, or on an executor that the user hands over."""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from ..data.arrays import reason_of
from ..evaluation.features import Features
from .cells import Cell
from .declarations import ADDRESSES, address
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


def run_all(tasks: Sequence[Task], jobs: int, executor: Executor | None) -> Outcomes:
    """Run cells, and yield the outcome of each as soon as it is there.

    A cell with a function or a class that another process cannot import, such as a lambda, runs in this process.

    Args:
        tasks: The cells.
        jobs: The number of local processes. With one job and without an executor, all cells run in this process.
        executor: An executor to run the cells on.
    """
    away: list[Task] = []
    here = list(tasks)
    if executor is not None or jobs > 1:
        away, here = _split(tasks)
    if away and executor is not None:
        yield from _on_executor(away, executor)
    elif away:
        yield from _in_processes(away, jobs)
    for task in here:
        yield task.cell, run_cell(*task)


def _split(tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """The tasks that can be sent to another process, and those that stay here, with a warning."""
    reasons = [(task, _reason_to_stay(task.cell)) for task in tasks]
    away = [task for task, reason in reasons if reason is None]
    here = [(task, reason) for task, reason in reasons if reason is not None]
    if here:
        first, reason = here[0]
        warnings.warn(
            f"{len(here)} of {len(tasks)} cells run in the process of the study, because another one cannot import "
            f"their functions or classes, {first.cell.label} for example: {reason} (move it to the top of a module)",
            stacklevel=4,
        )
    return away, [task for task, _ in here]


def _reason_to_stay(cell: Cell) -> str | None:
    """The first function or class of a cell that another process cannot import, by its address, or None."""
    kind = address(type(cell.data.train))
    return next((found for found in (kind, *_addresses(cell.declaration)) if _is_here(found)), None)


def _is_here(found: str) -> bool:
    return found.startswith("__main__:") or "<locals>" in found or "<lambda>" in found


def _addresses(declaration: Any) -> Iterator[str]:
    """The addresses of functions and classes in a declaration, at any depth."""
    if isinstance(declaration, dict):
        for name, value in declaration.items():
            if name in ADDRESSES and isinstance(value, str):
                yield value
            yield from _addresses(value)
    elif isinstance(declaration, list):
        for value in declaration:
            yield from _addresses(value)


# Executors.


def _on_executor(waiting: Sequence[Task], executor: Executor) -> Outcomes:
    """Submit all cells at once. The executor decides what runs when."""
    running: dict[Any, Task] = {}
    try:
        for task in waiting:
            try:
                running[executor.submit(run_cell, *task)] = task
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


def _in_processes(tasks: Sequence[Task], jobs: int) -> Outcomes:
    """Run cells in ``jobs`` local processes.

    If a process dies, for example because memory ran out, the cells that were running are repeated one by one, each in
    a process of its own, so that the cell that kills its process is found, and the others go on.
    """
    waiting = list(tasks)
    while waiting:
        running: dict[Future[Finished], Task] = {}
        pool = _pool(min(jobs, len(waiting)))
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running[pool.submit(run_cell, *waiting[0])] = waiting[0]
                    waiting.pop(0)
                for future in _ended(running):
                    if isinstance(future.exception(), BrokenProcessPool):
                        raise BrokenProcessPool
                    task = running.pop(future)
                    yield task.cell, _outcome(future, task)
        except BrokenProcessPool:
            pass
        finally:
            _stop(pool)
        for task in running.values():
            yield task.cell, _alone(task)


def _alone(task: Task) -> Finished:
    """Run one cell in a process of its own."""
    pool = _pool(1)
    try:
        return _outcome(pool.submit(run_cell, *task), task)
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
