"""Where cells run: in this process, in local processes, or on an executor that the user hands over."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from .cells import Cell
from .work import FAILED, Finished, run_cell

__all__ = ["Task", "run_all"]


Outcomes = Generator[tuple[Cell, Finished], None, None]


class Task(NamedTuple):
    """A cell that is to be run, with what ``run_cell`` needs."""

    cell: Cell
    arguments: tuple[Any, ...]


def run_all(tasks: Sequence[Task], jobs: int, executor: Executor | None) -> Outcomes:
    """Run cells, and yield the outcome of each as soon as it is there.

    A cell with a function that no other process can import runs in this process.

    Args:
        tasks: The cells.
        jobs: The number of local processes. With one job and without an executor, all cells run in this process.
        executor: An executor to run the cells on.
    """
    stays = [(executor is None and jobs == 1) or not task.cell.contestant.travels for task in tasks]
    here = [task for task, is_here in zip(tasks, stays, strict=True) if is_here]
    away = [task for task, is_here in zip(tasks, stays, strict=True) if not is_here]
    if away and executor is not None:
        yield from _on_executor(away, executor)
    elif away:
        yield from _in_processes(away, jobs)
    for task in here:
        yield task.cell, run_cell(*task.arguments)


def _on_executor(tasks: Sequence[Task], executor: Executor) -> Outcomes:
    """Submit all cells at once. The executor decides what runs when."""
    futures = {executor.submit(run_cell, *task.arguments): task for task in tasks}
    try:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield futures[future].cell, _outcome(future, futures[future])
    finally:
        for future in futures:
            future.cancel()


def _outcome(future: "Future[Finished]", task: Task) -> Finished:
    """The outcome of a future. An error of the executor is the reason in the record."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except Exception as error:  # noqa: BLE001 - executors have their own errors, for a lost worker for example
        return _lost(task, f"the executor lost it: {type(error).__name__}: {error}")


def _outcome_anywhere(future: "Future[Finished]", task: Task) -> Finished:
    """The outcome of a future on the executor of the user, who would have to start another one if it is broken."""
    try:
        return _outcome(future, task)
    except BrokenProcessPool:
        return _lost(task, "the executor lost it: a process died")


def _lost(task: Task, reason: str) -> Finished:
    record = {"key": task.cell.key, "declaration": task.cell.declaration, "status": FAILED, "reason": reason}
    return Finished({**record, "threads": 0, "seconds": 0.0}, {})


def _in_processes(tasks: Sequence[Task], jobs: int) -> Outcomes:
    """Run cells in ``jobs`` local processes.

    If a process dies, for example because memory ran out, the cells that were running are repeated one by one, each in
    a process of its own, so that the cell that kills its process is found, and the others go on.
    """
    waiting, suspects = list(tasks), list[Task]()
    while waiting:
        running: dict[Future[Finished], Task] = {}
        pool = _pool(min(jobs, len(waiting)))
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running[pool.submit(run_cell, *waiting[0].arguments)] = waiting[0]
                    waiting.pop(0)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    finished = _outcome(future, running[future])
                    yield running.pop(future).cell, finished
        except BrokenProcessPool:
            suspects = list(running.values())
        finally:
            _stop(pool)
        for task in suspects:
            yield task.cell, _alone(task)
        suspects = []


def _alone(task: Task) -> Finished:
    """Run one cell in a process of its own."""
    pool = _pool(1)
    try:
        return pool.submit(run_cell, *task.arguments).result()
    except BrokenProcessPool:
        return _lost(task, "its process died; memory may have run out")
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
