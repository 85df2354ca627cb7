"""A process of its own for one strategy: a crash ends a row and not the comparison, and caches are its own.

The parent asks, and is answered; both send dicts::

    {"do": "measure", "target": "llama", "strategy": "remat@0.5", ...}   -> {"stage": "compiling"}, ..., {"found": ...}
    {"do": "time"}                                                       -> {"seconds": 0.31}
    {"do": "warm up", ...}     (the model's eager step, then something small is compiled)  -> {"draws_random": false}

Before it compiles a plan it asks back whether another has measured it, or is about to::

    {"plan": "f8f2ad7663be"}   -> {"is_known": true}      (then it stops there, and answers with the plan alone)

The worker stays alive between the first two, with its compiled step: all strategies can then be timed in turns, without
compiling anything twice. It ends when the parent's end of the pipe does, so it never outlives its parent.
"""

from __future__ import annotations

import atexit
import gc
import math
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rematpass.config import child_environment, set_environment
from rematpass.errors import MeasureError

if TYPE_CHECKING:
    from rematpass.lab.benchmark.trial import Job


class WorkerDied(MeasureError):
    """A worker ended before it answered: how, and the last thing it said."""


class Worker:
    """The parent's side. ``log``: a file for everything the process prints; ``cache``: its Inductor's directory.

    Processes for a CPU are forked from one that has imported what all of them need, which takes seconds, and has done
    nothing else. A fork of one that has asked for a CUDA device cannot use it, so others start from nothing.
    """

    def __init__(self, log: Path, cache: Path, device: str = "cpu", **variables: str) -> None:
        self.log = log
        log.touch()
        get = multiprocessing.get_context
        context = get("forkserver") if device == "cpu" else get("spawn")
        context.set_forkserver_preload(["rematpass.lab.benchmark.preload"])
        environment = child_environment(TORCHINDUCTOR_CACHE_DIR=str(cache), **variables)
        self._waiting = threading.Lock()
        self._connection, its_end = context.Pipe()
        self._process = context.Process(target=_run, args=(its_end, log, Path.cwd(), environment))
        self._process.start()
        its_end.close()
        atexit.register(self.close)  # before multiprocessing's own, which would wait for it

    def ask(
        self,
        request: dict[str, Any],
        *,
        on_stage: Callable[[str], None] = lambda _: None,
        is_known: Callable[[str], bool] = lambda _: False,
        timeout: float = math.inf,
    ) -> dict[str, Any]:
        """The answer to a request. ``is_known`` is asked about each plan, by its hash, before that is compiled.

        Raises:
            WorkerDied: the process ended, or was ended after ``timeout`` seconds.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(min(timeout, threading.TIMEOUT_MAX), end)
        timer.daemon = True
        timer.start()
        try:
            self._send(request)
            while answer := self._receive():
                if "stage" in answer:
                    on_stage(answer["stage"])
                elif "plan" in answer:
                    self._send({"is_known": is_known(answer["plan"])})
                else:
                    return answer
        finally:
            timer.cancel()
        if late.is_set():
            raise WorkerDied(f"not done after {timeout:g} s")
        raise WorkerDied(self._how_it_ended())

    def close(self) -> None:
        """End the process; whoever is asking it is told."""
        # The pipe closes with its last reference: closed while a thread reads, its number may be a new file's by then.
        atexit.unregister(self.close)
        self._process.kill()
        self._wait()

    def _wait(self) -> None:
        with self._waiting:  # one at a time: the exit code can be read once
            self._process.join()

    def _send(self, request: dict[str, Any]) -> None:
        with suppress(OSError):  # the missing answer will say so
            self._connection.send(request)

    def _receive(self) -> dict[str, Any]:
        """What the process says; nothing, if it has ended."""
        try:
            answer: dict[str, Any] = self._connection.recv()
        except (EOFError, OSError):
            return {}
        return answer

    def _how_it_ended(self) -> str:
        self._wait()
        code = self._process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"the process was {how}" + (f"; it last said: {said[-1][:200]}" if said else "")


def serve(connection: Connection) -> None:
    """The worker's side: answer until there are no more requests. An error of the job is an answer as well."""
    from rematpass.lab.benchmark.trial import keep, look, warm_seconds, warm_up

    step: Callable[[], None] | None = None
    device = "cpu"

    def answer(**fields: Any) -> None:
        connection.send(fields)

    def is_known(plan: str) -> bool:
        answer(plan=plan)
        return bool(connection.recv()["is_known"])

    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            if (what := request.pop("do")) == "warm up":
                subject = look(job := _job(request))
                keep(job, subject)
                warm_up(request["device"])
                answer(draws_random=subject.draws_random)
            elif what == "measure":
                device = request.get("device", "cpu")
                found, step = _measure(request, lambda stage: answer(stage=stage), is_known)
                answer(**found)
            elif step is None:
                answer(error="nothing is compiled that could be timed")
            else:
                answer(seconds=warm_seconds(step, device))
        except MeasureError as error:
            answer(error=str(error), traceback=traceback.format_exc())
        except Exception as error:
            answer(failed=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())


def _job(request: dict[str, Any]) -> Job:
    from rematpass.lab.benchmark.trial import Job
    from rematpass.report.measurement import Strategy

    return Job(**{**request, "strategy": Strategy.parse(request["strategy"])})


def _measure(
    request: dict[str, Any], stage: Callable[[str], None], is_known: Callable[[str], bool]
) -> tuple[dict[str, Any], Callable[[], None] | None]:
    from rematpass.lab.benchmark import malloc, trial

    stage("building")
    job = _job(request)
    subject = trial.look(job)
    found, step = trial.measure(job, subject, stage, is_known)
    malloc.keep_freed_memory()
    trial.release(job.device)
    gc.collect()
    gc.freeze()  # else each collection before a timed step would walk all that a compiler leaves behind (0.3 s)
    parameters = sum(p.numel() for p in subject.model.parameters)
    return {"found": found.to_json(), "parameters": parameters, "draws_random": subject.draws_random}, step


def _run(connection: Connection, log: Path, directory: Path, environment: dict[str, str]) -> None:
    """The process: as a program would be that was started by the parent, in its directory and with its environment."""
    multiprocessing.set_start_method(None, force=True)  # ours is not for what a library starts or locks in here
    os.setsid()  # an interrupt at the terminal is for the parent, who ends this one
    set_environment(**environment)
    os.chdir(directory)
    with log.open("wb") as file:
        for output in (1, 2):
            os.dup2(file.fileno(), output)
    serve(connection)
