"""Worker processes: answers, errors, crashes and time limits. Each test starts a process, which takes seconds."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe

import pytest

from rematpass.lab.benchmark.worker import Worker, WorkerDied, serve

JOB = {"do": "measure", "target": "chain", "strategy": "eager", "sizes": {"layers": 2, "width": 8, "batch": 4}}


@pytest.fixture
def worker(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.py").write_text(
        "import os, sys, time\n"
        "def crash(): print('about to go', file=sys.stderr, flush=True); os.abort()\n"
        "def hang(): time.sleep(600)\n"
        "def talk(): print('this is no answer'); raise KeyError('x')\n"
        "def tell(): raise KeyError(os.environ['OF_THE_PARENT'], os.environ['TORCHINDUCTOR_CACHE_DIR'], os.getsid(0))\n"
    )
    monkeypatch.setenv("OF_THE_PARENT", "quiet")
    made = Worker(tmp_path / "log", tmp_path / "cache", getattr(request, "param", "cpu"))
    yield made
    made.close()


@pytest.mark.parametrize("worker", ["cpu", "cuda"], indirect=True)  # forked and spawned
def test_measure_then_time(worker):
    stages = []
    answer = worker.ask(dict(JOB), on_stage=stages.append)
    assert stages == ["building", "measuring", "measuring"]
    assert json.loads(answer["found"])["peak"] > 0
    assert (answer["parameters"], answer["draws_random"]) == (2 * (8 * 8 + 8), False)
    assert worker.ask({"do": "time"})["seconds"] > 0


def test_a_crash_reports_the_signal_and_the_last_output(worker):
    with pytest.raises(WorkerDied, match="the process was killed by SIGABRT; its last output: about to go"):
        worker.ask(JOB | {"target": "users:crash", "sizes": {}})
    with pytest.raises(WorkerDied, match="SIGABRT"):
        worker.ask({"do": "time"})


def test_a_request_beyond_its_time_limit_fails(worker):
    with pytest.raises(WorkerDied, match=r"^not done after 0\.5 s$"):
        worker.ask(JOB | {"target": "users:hang", "sizes": {}}, timeout=0.5)


def test_several_threads_may_close_a_worker_that_is_asked(worker):
    """When a worker fails, the session closes all workers while each thread closes its own."""
    with ThreadPoolExecutor(5) as pool:
        asking = pool.submit(worker.ask, JOB | {"target": "users:hang", "sizes": {}})
        closing = [pool.submit(worker.close) for _ in range(4)]
        assert [each.result(30) for each in closing] == [None] * 4
        with pytest.raises(WorkerDied, match="killed by SIGKILL"):
            asking.result(30)


def test_output_of_the_model_is_not_an_answer(worker):
    answer = worker.ask(JOB | {"target": "users:talk", "sizes": {}})
    assert answer["error"] == "users:talk raised KeyError: 'x'"
    assert "Traceback" in answer["traceback"]


def test_the_process_has_its_parents_environment(worker, tmp_path):
    answer = worker.ask(JOB | {"target": "users:tell", "sizes": {}})
    told = "quiet", str(tmp_path / "cache"), worker._process.pid  # which leads its own session
    assert answer["error"] == f"users:tell raised KeyError: {told}"


def test_requests_are_answered_by_serve():
    ours, its = Pipe()
    thread = threading.Thread(target=serve, args=(its,))
    thread.start()
    ours.send({"do": "time"})
    assert ours.recv()["error"] == "there is no compiled step to time"
    ours.send(JOB | {"target": "chian"})
    assert ours.recv() == {"stage": "building"}
    assert ours.recv()["error"].startswith("unknown model 'chian'; did you mean chain? Valid names are llama")
    ours.close()
    thread.join(30)
    assert not thread.is_alive()
