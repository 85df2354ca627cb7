"""Sessions with fake workers that answer from a table: what is measured, what is not, and in which order."""

import dataclasses
import errno
import math
import os
import threading
import time
from pathlib import Path

import pytest

from rematpass.core.frontier import least_budget
from rematpass.errors import MeasureError
from rematpass.lab.benchmark import job
from rematpass.lab.benchmark.session import Session
from rematpass.lab.benchmark.spec import Settings, Wanted
from rematpass.lab.benchmark.store import Store
from rematpass.lab.benchmark.worker import WorkerDied
from rematpass.report.measurement import FAILED, INFEASIBLE, MEASURED, Measurement, Strategy, parse_list

KIB = 1024
PEAKS = {"eager": 13, "inductor": 11, "inductor@0.2": 17, "remat@1": 10, "remat@0": 5}
SECONDS = {"eager": 6.0, "inductor": 4.0, "inductor@0.2": 8.0, "remat@1": 5.0, "remat@0": 6.0}


class Workers:
    """Replaces the class Worker: each call makes a fake worker; ``asked`` records all requests."""

    def __init__(self, peaks=PEAKS, seconds=SECONDS):
        self.peaks, self.seconds = peaks, seconds
        self.asked, self.alive, self.most_alive = [], 0, 0

    def __call__(self, log, cache, device):
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        return Worker(self)

    @property
    def measured(self):
        return [name for what, name in self.asked if what == "measure"]

    @property
    def timed(self):
        return [name for what, name in self.asked if what == "time"]


class Worker:
    def __init__(self, workers):
        self.workers, self.name, self.is_open = workers, "", True

    def ask(self, request, *, on_stage=lambda _: None, is_known=lambda _: False, timeout=math.inf):
        self.name = request.get("strategy", self.name)
        self.workers.asked.append((request["do"], self.name))
        if request["do"] == "warm up":
            return (
                answer if isinstance(answer := self.workers.peaks.get("inductor"), dict) and "error" in answer else {}
            )
        if request["do"] == "time":
            return {"seconds": self.workers.seconds[self.name]}
        on_stage("compiling")
        return self.measure(request, is_known)

    def measure(self, request, is_known):
        answer = self.workers.peaks.get(self.name)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, dict):
            return answer
        strategy = Strategy.parse(self.name)
        blank = job.blank(job.Job(request["target"], strategy, request["device"], request["sizes"]))
        fields = vars(blank) | {"peak": KIB * (answer or 0), "gradients": 3 * KIB}
        if strategy.runner == "remat":
            planned = 10 if (strategy.nbytes or 1e9) >= 10 * KIB and self.name != "remat@0" else 5
            fields |= {
                "planned_peak": planned * KIB,
                "floor": 5 * KIB,
                "ceiling": 10 * KIB,
                "plan_hash": f"plan {planned}",
            }
            if strategy.nbytes is not None and strategy.nbytes < 5 * KIB:
                fields |= {"status": INFEASIBLE, "error": "the floor is 5.00 KiB", "peak": None}
            elif is_known(fields["plan_hash"]):
                fields |= {"peak": None, "gradients": None}
        return {"found": Measurement(**fields).to_json(), "parameters": 7}

    def close(self):
        self.workers.alive -= self.is_open
        self.is_open = False


@pytest.fixture
def workers(monkeypatch):
    def use(**options):
        made = Workers(**options)
        monkeypatch.setattr("rematpass.lab.benchmark.workers.Worker", made)
        return made

    return use


def run(store, peers="eager,inductor,inductor@0.2", budgets="1,0", settings=None, **wanted):
    wanted = Wanted(parse_list(peers), parse_list(budgets, "remat"), **wanted)
    with Session("llama", store, settings or Settings(rounds=3)) as found:
        strategies = found.run(wanted)
        rows = {row.strategy: row for row in found.rows(strategies)}
        pending = [s.name for s in strategies if found.is_pending(s)]
    return [s.name for s in strategies], rows, pending


def test_each_is_measured_once_and_timed_in_turns(workers):
    used = workers()
    names, rows, pending = run(Store())
    assert names == ["eager", "inductor", "inductor@0.2", "remat@1", "remat@0"]
    assert used.measured == ["inductor", "eager", "remat@1", "remat@0", "inductor@0.2"]
    first, second, third = used.timed[:5], used.timed[5:10], used.timed[10:]
    assert second == first[1:] + first[:1]
    assert third == second[1:] + second[:1]
    assert {name: row.step_ratio for name, row in rows.items()} == {
        name: (seconds / 4, seconds / 4, seconds / 4) for name, seconds in SECONDS.items()
    }
    assert rows["eager"].rounds == 3
    assert pending == []
    assert used.alive == 0


def test_a_second_run_measures_nothing(workers):
    store = Store()
    used = workers()
    first = run(store, like_peers=True, between=3)
    asked, added = len(used.asked), store.added
    assert run(store, like_peers=True, between=3) == first
    assert (len(used.asked), store.added) == (asked, added)


def test_a_run_after_an_interruption_continues(workers):
    store = Store()
    workers(peaks=PEAKS | {"inductor@0.2": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(store)
    used = workers()
    _, rows, pending = run(store)
    assert pending == []
    assert "eager" in used.measured  # its bytes are known, its step times are not
    assert rows["inductor@0.2"].peak == 17 * KIB


def test_remat_gets_the_bytes_of_each_peer_and_equal_plans_are_measured_once(workers):
    used = workers()
    names, rows, _ = run(Store(), like_peers=True)
    assert names == [
        "eager", "remat@13312B", "inductor", "remat@11264B", "inductor@0.2", "remat@17408B", "remat@1", "remat@0"
    ]  # fmt: skip
    assert {rows[f"remat@{n}B"].same_plan_as for n in (13312, 11264, 17408)} == {"remat@1"}
    assert rows["remat@13312B"].budget_nbytes == 13 * KIB
    assert not any("B" in name for name in used.timed)


def test_byte_budgets_between_floor_and_ceiling(workers):
    workers()
    names, _, _ = run(Store(), peers="none", between=3)
    budgets = [Strategy.parse(name).nbytes for name in names if name.endswith("B")]
    assert budgets == [
        least_budget(5 * KIB, "cpu"),
        pytest.approx(least_budget(15 * KIB // 2, "cpu"), abs=1),
        least_budget(10 * KIB, "cpu"),
    ]


def test_the_least_byte_budget_is_the_floor_according_to_inductor():
    """Every row has the simulator's floor; the peak planned at budget 0 may be slightly above it."""
    rows = [
        Measurement("m", name, "cpu", "2", floor=floor, ceiling=10 * KIB)
        for name, floor in (("remat@1", 5 * KIB), ("remat@0", 6 * KIB))
    ]
    budgets = [s.nbytes for s in Wanted(between=2).derived(rows)]
    assert budgets == [least_budget(6 * KIB, "cpu"), least_budget(10 * KIB, "cpu")]


def test_budget_below_the_floor_is_a_row(workers):
    workers()
    _, rows, pending = run(Store(), peers="none", budgets="0,2KiB")
    assert (rows["remat@2KiB"].status, rows["remat@2KiB"].error) == (INFEASIBLE, "the floor is 5.00 KiB")
    assert pending == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (WorkerDied("the process was killed by SIGSEGV"), "the process was killed by SIGSEGV"),
        ({"failed": "ValueError: odd"}, "ValueError: odd"),
    ],
)
def test_a_strategy_that_fails_has_a_row_and_the_others_continue(workers, answer, error):
    store = Store()
    workers(peaks=PEAKS | {"inductor@0.2": answer})
    _, rows, pending = run(store)
    assert (rows["inductor@0.2"].status, rows["inductor@0.2"].error) == (FAILED, error)
    assert rows["remat@0"].step_ratio == (1.5, 1.5, 1.5)
    assert pending == []
    used = workers()
    run(store)
    assert used.asked == []
    _, rows, _ = run(store, settings=Settings(rounds=3, retry=True))
    assert rows["inductor@0.2"].peak == 17 * KIB


def test_without_inductor_there_are_seconds_and_no_ratios(workers):
    workers(peaks=PEAKS | {"inductor": {"failed": "CppCompileError: none"}})
    _, rows, _ = run(Store())
    assert (rows["eager"].step_seconds, rows["eager"].step_ratio) == (6.0, None)


def test_a_model_that_cannot_be_imported_ends_the_session(workers):
    workers(peaks={"inductor": {"error": "cannot import 'x:y'", "traceback": "Traceback: over there"}})
    with pytest.raises(MeasureError, match="cannot import 'x:y'") as raised:
        run(Store())
    assert str(raised.value.__cause__) == "Traceback: over there"


def test_retime_takes_step_times_again(workers):
    store = Store()
    workers()
    run(store)
    workers(seconds=SECONDS | {"eager": 2.0, "inductor": 1.0})
    _, rows, pending = run(store, settings=Settings(rounds=5, retime=True))
    assert (rows["eager"].step_ratio, rows["eager"].rounds, rows["inductor"].step_seconds) == ((2.0, 2.0, 2.0), 5, 1.0)
    assert pending == []
    # A row does not refer to itself as the same plan: it keeps its figures.
    assert [rows[name].same_plan_as for name in ("remat@1", "remat@0")] == ["", ""]
    assert rows["remat@1"].peak is not None
    assert rows["remat@1"].rounds == 5


def of_another_planner(monkeypatch, source="planner 2", carrier="carrier"):
    monkeypatch.setattr(job, "source_hash", lambda device: source)
    monkeypatch.setattr(job, "carrier_hash", lambda device: carrier)


def test_another_planner_is_measured_only_where_its_plans_differ(workers, monkeypatch):
    store = Store()
    of_another_planner(monkeypatch, "planner 1")
    workers()
    _, before, _ = run(store, like_peers=True)
    of_another_planner(monkeypatch, "planner 2")
    used = workers(peaks=PEAKS | {"remat@1": 99, "remat@0": 99})
    _, rows, pending = run(store, like_peers=True)
    assert {row.source for name, row in rows.items() if name.startswith("remat")} == {"planner 2"}
    assert {name: dataclasses.replace(row, source=before[name].source) for name, row in rows.items()} == before
    assert used.timed == pending == []


def test_an_equal_plan_of_another_strategy_is_not_measured_again(workers, monkeypatch):
    store = Store()
    of_another_planner(monkeypatch, "planner 1")
    workers()
    run(store)
    of_another_planner(monkeypatch, "planner 2")
    used = workers()
    _, rows, pending = run(store, budgets="13KiB")
    assert (rows["remat@13KiB"].same_plan_as, rows["remat@13KiB"].peak) == ("remat@1", None)
    assert used.timed == pending == []


@pytest.mark.parametrize(
    ("carrier", "settings"),
    [
        ("another", Settings(rounds=3)),  # other code emits the plan
        ("carrier", Settings(rounds=3, retime=True)),  # step times are taken again
        ("carrier", Settings(rounds=0)),  # the earlier row has no step times
    ],
)
def test_equal_plans_of_another_planner_are_measured_again(workers, monkeypatch, carrier, settings):
    store = Store()
    of_another_planner(monkeypatch, "planner 1")
    workers()
    run(store, settings=settings)
    of_another_planner(monkeypatch, "planner 2", carrier)
    workers(peaks=PEAKS | {"remat@1": 99})
    _, rows, _ = run(store, settings=Settings(rounds=3, retime=settings.retime))
    assert (rows["remat@1"].peak, rows["remat@1"].same_plan_as, rows["remat@1"].rounds) == (99 * KIB, "", 3)


def test_without_rounds_there_are_no_step_times(workers):
    used = workers()
    _, rows, pending = run(Store(), settings=Settings(rounds=0))
    assert used.timed == []
    assert rows["eager"].step_seconds is None
    assert pending == []


def test_alive_limits_the_workers_at_once(workers):
    used = workers()
    _, rows, pending = run(Store(), settings=Settings(rounds=1, alive=3))
    assert used.most_alive == 3
    assert all(row.step_ratio for row in rows.values())
    assert pending == []


def test_nothing_starts_after_the_time_is_over(workers):
    used = workers()
    _, rows, pending = run(Store(), settings=Settings(rounds=1, until=time.monotonic() - 1))
    assert used.measured == []
    assert rows == {}
    assert len(pending) == 5


def test_workers_that_an_interruption_ends_are_not_recorded_as_failed(workers, monkeypatch):
    """One job is interrupted, and the worker of the other one is closed meanwhile: neither leaves a row."""
    store, used = Store(), workers()
    others_turn, closed = threading.Event(), threading.Event()
    ask, close = Worker.ask, Worker.close

    def slow(worker, request, **options):
        if request["do"] == "measure" and request["strategy"] == "inductor@0.2":
            others_turn.set()
            assert closed.wait(30)
            raise WorkerDied("the process was killed by SIGKILL")
        if request["do"] == "measure" and request["strategy"] == "eager":
            assert others_turn.wait(30)
            raise KeyboardInterrupt
        return ask(worker, request, **options)

    def closing(worker):
        close(worker)
        if others_turn.is_set() and worker.name == "inductor":
            closed.set()

    monkeypatch.setattr(Worker, "ask", slow)
    monkeypatch.setattr(Worker, "close", closing)
    with pytest.raises(KeyboardInterrupt):
        run(store, settings=Settings(rounds=1, jobs=2))
    assert not {"eager", "inductor@0.2"} & {row.strategy for row in store.rows()}
    assert used.alive == 0


def test_a_directory_that_compilers_still_write_to_is_left(workers, monkeypatch):
    def not_empty(*_, **__):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as busy, Session("llama", Store(), Settings()) as one:
        busy.setattr(os, "rmdir", not_empty)
        place = one._workers.directory
    assert place.is_dir()
    place.rmdir()


def test_sizes_are_a_part_of_the_name(workers):
    workers()
    with Session("llama", Store(), Settings(sizes={"layers": 2, "batch": 3})) as found:
        assert found.model == "llama,batch=3,layers=2"


@pytest.mark.parametrize("draws", [False, True])
def test_which_strategies_wait_for_others(workers, monkeypatch, draws):
    """Eager runs beside the warm-up; remat runs beside Inductor, unless it needs Inductor's gradients as reference."""
    used = workers()
    asked = {name: threading.Event() for name in ("eager", "remat@1")}
    beside_inductor = []
    ask = Worker.ask

    def following(worker, request, **options):
        if request["do"] == "warm up":
            assert asked["eager"].wait(30)
            return {"draws_random": draws}
        if request["do"] == "measure":
            if request["strategy"] in asked:
                asked[request["strategy"]].set()
            if request["strategy"] == "inductor":
                beside_inductor.append(asked["remat@1"].wait(0.5 if draws else 30))
        return ask(worker, request, **options)

    monkeypatch.setattr(Worker, "ask", following)
    _, rows, pending = run(Store(), settings=Settings(rounds=1, jobs=2), like_peers=True)
    assert beside_inductor == [not draws]
    assert pending == []
    assert {row.same_plan_as for name, row in rows.items() if name.endswith("B")} == {"remat@1"}
    assert used.alive == 0


@pytest.mark.parametrize("first_fails", [False, True])
def test_equal_plans_at_the_same_time_are_measured_once(workers, monkeypatch, first_fails):
    """Two workers have the same plan at the same time. If the first one fails, the other one measures."""
    budgets = {"remat@13KiB", "remat@12KiB"}
    used = workers(peaks=dict.fromkeys(budgets, 9) | PEAKS, seconds=dict.fromkeys(budgets, 1.0) | SECONDS)
    both_asked = threading.Barrier(2)
    asked, first = [], []
    ask = Worker.ask

    def following(worker, request, *, is_known=lambda _: False, **options):
        def with_the_other(plan):
            known = is_known(plan)
            asked.append(request["strategy"])
            if len(asked) <= 2:
                first.extend([] if known else [request["strategy"]])
                both_asked.wait(30)
            return known

        answer = ask(worker, request, is_known=with_the_other, **options)
        return {"failed": "ValueError: odd"} if first_fails and request.get("strategy") in first else answer

    monkeypatch.setattr(Worker, "ask", following)
    _, rows, pending = run(Store(), "none", "13KiB,12KiB", settings=Settings(rounds=1, jobs=2))
    (one,) = first
    (other,) = budgets - {one}
    assert (pending, used.alive) == ([], 0)
    if first_fails:
        assert asked[2:] == [other]
        assert (rows[one].status, rows[other].status, rows[other].peak) == (FAILED, MEASURED, 9 * KIB)
    else:
        assert len(asked) == 2
        assert (rows[one].peak, rows[other].peak, rows[other].same_plan_as) == (9 * KIB, None, one)
        assert set(used.timed) == {"inductor", one}


def test_strategies_that_share_one_plan_of_several_start_at_most_twice(workers, monkeypatch):
    used = workers(peaks={"remat@1": 10, "remat@0.5": 8, "remat@0": 5} | PEAKS, seconds={"remat@0.5": 5.0} | SECONDS)
    measure = Worker.measure

    def of_two_graphs(worker, request, is_known):
        row = Measurement.from_json(measure(worker, request, lambda _: False)["found"])
        if worker.name != "inductor":
            stopped = is_known("shared")
            time.sleep(0.05)  # so that several run at the same time
            fields = {"plan_hash": "shared", "peak": None} if stopped else {"plan_hash": f"shared+{worker.name}"}
            row = dataclasses.replace(row, **fields)
        return {"found": row.to_json()}

    monkeypatch.setattr(Worker, "measure", of_two_graphs)
    _, rows, pending = run(Store(), "none", "1,0.5,0", settings=Settings(rounds=1, jobs=3))
    assert (pending, used.alive) == ([], 0)
    assert {name: row.peak for name, row in rows.items()} == {"remat@1": 10240, "remat@0.5": 8192, "remat@0": 5120}
    begun = [used.measured.count(name) for name in rows]
    assert max(begun) == 2
    assert min(begun) == 1


def test_a_worker_that_starts_while_the_session_ends_is_closed(workers):
    used = workers()
    with Session("llama", Store(), Settings()) as one:
        pass
    worker = one._workers.start(Path("log"), Path("cache"))
    assert (worker.is_open, used.alive) == (False, 0)
