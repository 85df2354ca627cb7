"""A process of its own: answers, errors, crashes and time limits. Each test starts one, which takes seconds."""

import io
import json

import pytest

from rematpass.lab.worker import Worker, WorkerDied, serve

JOB = {"do": "measure", "target": "chain", "strategy": "eager", "sizes": {"layers": 2, "width": 8, "batch": 4}}


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.py").write_text(
        "import os, sys, time\n"
        "def crash(): print('about to go', file=sys.stderr, flush=True); os.abort()\n"
        "def hang(): time.sleep(600)\n"
        "def talk(): print('this is no answer'); raise KeyError('x')\n"
    )
    made = Worker(tmp_path / "log", tmp_path / "cache")
    yield made
    made.close()


def test_measure_then_time(worker):
    stages = []
    answer = worker.ask(dict(JOB), on_stage=stages.append)
    assert stages == ["building", "measuring", "measuring"]
    assert json.loads(answer["found"])["peak"] > 0
    assert (answer["parameters"], answer["draws_random"]) == (2 * (8 * 8 + 8), False)
    assert worker.ask({"do": "time"})["seconds"] > 0


def test_crash_says_how_and_the_last_words(worker):
    with pytest.raises(WorkerDied, match="the process was killed by SIGABRT; it last said: about to go"):
        worker.ask(JOB | {"target": "users:crash", "sizes": {}})
    with pytest.raises(WorkerDied, match="SIGABRT"):
        worker.ask({"do": "time"})


def test_time_limit(worker):
    with pytest.raises(WorkerDied, match=r"^not done after 0\.5 s$"):
        worker.ask(JOB | {"target": "users:hang", "sizes": {}}, timeout=0.5)


def test_what_others_print_is_no_answer(worker):
    answer = worker.ask(JOB | {"target": "users:talk", "sizes": {}})
    assert answer["error"] == "users:talk raised KeyError: 'x'"
    assert "Traceback" in answer["traceback"]


def test_requests_in_this_process():
    requests = io.StringIO("".join(json.dumps(r) + "\n" for r in ({"do": "time"}, JOB | {"target": "chian"})))
    answers = io.StringIO()
    serve(requests, answers)
    first, *_, last = map(json.loads, answers.getvalue().splitlines())
    assert first["error"] == "nothing is compiled that could be timed"
    assert last["error"].startswith("no model 'chian'; there are llama")
