"""A separate process for each strategy, with caches of its own; a crash fails one row and not the comparison.

The parent sends requests and the worker answers; both send dicts::

    {"do": "measure", "target": "llama", "strategy": "remat@0.5", ...}   -> {"stage": "compiling"}, ..., {"found": ...}
    {"do": "time"}                                                       -> {"seconds": 0.31}
    {"do": "warm up", ...}     (the model's eager step, then something small is compiled)  -> {"draws_random": false}

Before it compiles a plan, the worker asks whether an equal plan has been measured or is being measured::

    {"plan": "f8f2ad7663be"}   -> {"is_known": true}      (the worker then stops, and answers with the plan only)

The worker keeps its compiled step between the first two requests, so that all strategies are timed in turns and nothing
is compiled twice. It ends when the parent's end of the pipe closes, so it never outlives its parent.
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
    from rematpass.lab.benchmark.job import Job


class WorkerDied(MeasureError):
    """A worker ended before it answered. The message says how, and quotes the last line of its output."""


class Worker:
    """The parent's side. ``log``: the file for the process's output; ``cache``: Inductor's cache directory.

    Processes for a CPU are forked from a server that has imported what all of them need, which takes seconds, and has
    done nothing else. CUDA cannot be used in a fork of a process that has initialized it, so those are spawned.
    """

    def __init__(self, log: Path, cache: Path, device: str = "cpu", **variables: str) -> None:
        # Not at the top: a started process sets its environment before it loads torch.
        from rematpass.compiler.devices import of

        self.log = log
        log.touch()
        context: Any = multiprocessing.get_context(of(device).start_method)
        context.set_forkserver_preload(["rematpass.lab.benchmark.preload"])
        environment = child_environment(TORCHINDUCTOR_CACHE_DIR=str(cache), **variables)
        self._joining = threading.Lock()
        self._has_ended = False
        self._connection, far_end = context.Pipe()
        self._process = context.Process(target=_run, args=(far_end, log, Path.cwd(), environment))
        self._process.start()
        far_end.close()
        atexit.register(self.close)  # runs before multiprocessing's exit handler, which would wait for the process

    def ask(
        self,
        request: dict[str, Any],
        *,
        on_stage: Callable[[str], None] = lambda _: None,
        is_known: Callable[[str], bool] = lambda _: False,
        timeout: float = math.inf,
    ) -> dict[str, Any]:
        """The answer to a request. ``is_known`` is called with the hash of each plan before the plan is compiled.

        Raises:
            WorkerDied: the process ended, or was killed after ``timeout`` seconds.
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
        raise WorkerDied(self._exit_text())

    def close(self) -> None:
        """Kill the process and the compilers it has started; a thread that waits in ``ask`` gets WorkerDied.

        The pipe is not closed here: if a thread still reads it, its file descriptor could meanwhile belong to a new
        file. It closes with its last reference.
        """
        atexit.unregister(self.close)
        if (pid := self._process.pid) and not self._has_ended:
            with suppress(ProcessLookupError, PermissionError):  # it has not called setsid yet, or has just ended
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._join()

    def _join(self) -> None:
        with self._joining:  # one thread at a time: the exit code can be read only once
            self._process.join()
            self._has_ended = True

    def _send(self, request: dict[str, Any]) -> None:
        with suppress(OSError):  # the missing answer shows that the process has ended
            self._connection.send(request)

    def _receive(self) -> dict[str, Any]:
        """The next message of the process; empty if the process has ended."""
        try:
            answer: dict[str, Any] = self._connection.recv()
        except (EOFError, OSError):
            return {}
        return answer

    def _exit_text(self) -> str:
        self._join()
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"the process {how}" + (f"; its last output: {lines[-1][:200]}" if lines else "")


def serve(connection: Connection) -> None:
    """The worker's side: answer requests until the pipe closes. An error of the job is an answer as well."""
    from rematpass.lab.benchmark.subject import prepare, save_eager_step
    from rematpass.lab.benchmark.trial import warm_seconds
    from rematpass.lab.measure.warm_up import warm_up

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
                subject = prepare(job := _job(request))
                save_eager_step(job, subject)
                warm_up(request["device"])
                answer(draws_random=subject.draws_random)
            elif what == "measure":
                device = request.get("device", "cpu")
                found, step = _measure(request, lambda stage: answer(stage=stage), is_known)
                answer(**found)
            elif step is None:
                answer(error="there is no compiled step to time")
            else:
                answer(seconds=warm_seconds(step, device))
        except MeasureError as error:
            answer(error=str(error), traceback=traceback.format_exc())
        except Exception as error:
            answer(failed=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())


def _job(request: dict[str, Any]) -> Job:
    from rematpass.lab.benchmark.job import Job
    from rematpass.report.measurement import Strategy

    return Job(**{**request, "strategy": Strategy.parse(request["strategy"])})


def _measure(
    request: dict[str, Any], stage: Callable[[str], None], is_known: Callable[[str], bool]
) -> tuple[dict[str, Any], Callable[[], None] | None]:
    from rematpass.lab.benchmark import malloc, trial
    from rematpass.lab.benchmark.subject import prepare

    stage("building")
    job = _job(request)
    subject = prepare(job)
    found, step = trial.measure(job, subject, stage, is_known)
    malloc.keep_freed_memory()
    trial.release(job.device)
    gc.collect()
    gc.freeze()  # otherwise each collection before a timed step walks all objects of the compiler (0.3 s)
    parameters = sum(p.numel() for p in subject.model.parameters)
    return {"found": found.to_json(), "parameters": parameters, "draws_random": subject.draws_random}, step


def _run(connection: Connection, log: Path, directory: Path, environment: dict[str, str]) -> None:
    """The process, set up like a program that the parent starts: in its directory and with its environment."""
    multiprocessing.set_start_method(None, force=True)  # libraries in this process choose their own start method
    os.setsid()  # an interrupt at the terminal goes to the parent only, which ends this process
    set_environment(**environment)
    os.chdir(directory)
    with log.open("wb") as file:
        for output in (1, 2):
            os.dup2(file.fileno(), output)
    serve(connection)
