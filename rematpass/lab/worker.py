"""A process of its own for one strategy: a crash ends a row and not the comparison, and caches are its own.

The parent asks in JSON, one line each, and is answered likewise::

    {"do": "measure", "target": "llama", "strategy": "remat@0.5", ...}   -> {"stage": "compiling"}, ..., {"found": ...}
    {"do": "time"}                                                       -> {"seconds": 0.31}
    {"do": "warm up", ...}     (the model's eager step, then something small is compiled)  -> {"draws_random": false}

Before it compiles a plan it asks back whether another has measured it, or is about to::

    {"plan": "f8f2ad7663be"}   -> {"is_known": true}      (then it stops there, and answers with the plan alone)

The worker stays alive between the first two, with its compiled step: all strategies can then be timed in turns, without
compiling anything twice. It ends when its input does, so it never outlives its parent.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rematpass.config import child_environment
from rematpass.errors import MeasureError

if TYPE_CHECKING:
    from rematpass.lab.trial import Job


class WorkerDied(MeasureError):
    """A worker ended before it answered: how, and the last thing it said."""


class Worker:
    """The parent's side. ``log``: a file for everything the process prints; ``cache``: its Inductor's directory."""

    def __init__(self, log: Path, cache: Path, **variables: str) -> None:
        root = str(Path(__file__).parents[2])  # for a package that is run from its checkout
        path = os.pathsep.join(filter(None, [child_environment().get("PYTHONPATH", ""), root]))
        environment = child_environment(PYTHONPATH=path, TORCHINDUCTOR_CACHE_DIR=str(cache), **variables)
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,  # an interrupt at the terminal is for the parent, who ends this one
            )

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
            self._write(request)
            while line := self._readline():
                answer: dict[str, Any] = json.loads(line)
                if "stage" in answer:
                    on_stage(answer["stage"])
                elif "plan" in answer:
                    self._write({"is_known": is_known(answer["plan"])})
                else:
                    return answer
        finally:
            timer.cancel()
        if late.is_set():
            raise WorkerDied(f"not done after {timeout:g} s")
        raise WorkerDied(self._how_it_ended())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with suppress(BrokenPipeError):  # of what was not sent any more
                    stream.close()

    def _write(self, request: dict[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer will say so

    def _readline(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"the process was {how}" + (f"; it last said: {said[-1][:200]}" if said else "")


def serve(requests: IO[str], answers: IO[str]) -> None:
    """The worker's side: answer until there are no more requests. An error of the job is an answer as well."""
    from rematpass.lab.trial import keep, look, warm_seconds, warm_up

    step: Callable[[], None] | None = None
    device = "cpu"

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    def is_known(plan: str) -> bool:
        answer(plan=plan)
        return bool(json.loads(next(requests))["is_known"])

    for line in requests:
        request = json.loads(line)
        try:
            if (what := request.pop("do")) == "warm up":
                subject = look(_job(request))
                keep(subject, Path(request["eager_step"]))
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
    from rematpass.lab.trial import Job
    from rematpass.report.measurement import Strategy

    return Job(**{**request, "strategy": Strategy.parse(request["strategy"])})


def _measure(
    request: dict[str, Any], stage: Callable[[str], None], is_known: Callable[[str], bool]
) -> tuple[dict[str, Any], Callable[[], None] | None]:
    from rematpass.lab import trial

    stage("building")
    job = _job(request)
    subject = trial.look(job)
    found, step = trial.measure(job, subject, stage, is_known)
    trial.release(job.device)
    gc.collect()
    gc.freeze()  # else each collection before a timed step would walk all that a compiler leaves behind (0.3 s)
    parameters = sum(p.numel() for p in subject.model.parameters)
    return {"found": found.to_json(), "parameters": parameters, "draws_random": subject.draws_random}, step


def main() -> None:
    """Answer on what was standard output; everything that others print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
