"""What each kind of device answers, and a third kind that only the tests know."""

import contextlib
import multiprocessing
import types

import psutil
import pytest
import torch
from torch import fx, nn

from rematpass.compiler import devices
from rematpass.compiler.auto_budget import ROUNDING, free_bytes
from rematpass.compiler.devices.allocator_trace import AllocationEvent, Recording
from rematpass.compiler.devices.base import AllocatorPeak, CalibrationSizes, DeviceKind
from rematpass.compiler.devices.cpu import Cpu
from rematpass.compiler.devices.cuda import Cuda, events_of_history
from rematpass.compiler.devices.other import Other
from rematpass.compiler.ops import workspace
from rematpass.compiler.ops.node_info import device_name_of
from rematpass.core.hardware import for_device
from rematpass.errors import MeasureError
from rematpass.lab.measure.memory_and_time import measure_memory, seconds_of

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda", 0), torch.device("meta")


@pytest.mark.parametrize("kind", [*devices.KINDS, Other("meta", ("cpu",))], ids=lambda kind: kind.type)
class TestEachKind:
    def test_has_every_attribute(self, kind):
        assert torch.device(kind.type).type == kind.type
        assert kind.codegen in ("cpp", "triton", "")
        assert kind.granularity >= 1
        assert kind.start_method in multiprocessing.get_all_start_methods()
        assert isinstance(kind.collective_backend, str)
        assert isinstance(kind.calibration, CalibrationSizes)
        flags = (
            kind.is_host,
            kind.processes_are_isolated,
            kind.packs_convolution_weights,
            kind.sums_in_any_order,
        )
        assert all(isinstance(flag, bool) for flag in flags)

    def test_answers_without_a_device(self, kind):
        assert isinstance(kind.is_available(), bool)
        assert all(isinstance(state, torch.Tensor) for state in kind.random_states())
        assert all(isinstance(setting, str) for setting in (*kind.library_settings(), *kind.workspace_settings()))
        assert isinstance(kind.can_measure_workspace(torch.ops.aten.bmm.default, {torch.float32}, 0), bool)
        assert isinstance(kind.rounds_to_tf32(convolution=True), bool)

    def test_rounds_requests_up_to_its_granularity(self, kind):
        granularity = kind.granularity
        requests = (0, granularity, granularity + 1)
        assert [kind.allocated(nbytes) for nbytes in requests] == [0, granularity, 2 * granularity]


def test_of_gives_the_kind_of_a_device():
    assert isinstance(devices.of("cpu"), Cpu)
    assert isinstance(devices.of(CUDA), Cuda)
    assert isinstance(devices.of("cuda:1"), Cuda)
    assert isinstance(devices.of(META), Other)


def test_a_gpu_hands_out_multiples_of_512_bytes():
    assert [devices.of(CUDA).allocated(n) for n in (0, 1, 512, 513)] == [0, 512, 512, 1024]
    assert devices.of(CPU).allocated(513) == 513


def test_the_accelerator_is_the_first_device_besides_the_cpu():
    assert devices.accelerator_among([CPU, CUDA, META]) == CUDA
    assert devices.accelerator_among([CPU]) == devices.accelerator_among([]) == CPU


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "'gpu' is not a device; try cpu or cuda"),
        ("meta", "memory can be measured on cpu and cuda, not on meta"),
    ],
)
def test_a_device_that_cannot_be_used(device, message):
    with pytest.raises(MeasureError, match=f"^{message}$"):
        devices.usable(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_missing_cuda_device():
    with pytest.raises(MeasureError, match="finds no CUDA device here; try --device cpu"):
        devices.usable("cuda")
    assert devices.current() == CPU


def test_a_cuda_device_beyond_those_of_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.usable("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(MeasureError, match=r"^there is no cuda:2: the machine has 2 CUDA device\(s\)$"):
        devices.usable("cuda:2")


class TestOther:
    """A device without a file: a graph on it can be planned, but not measured."""

    def test_answers_the_planners_questions(self, monkeypatch):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1009))
        kind = devices.of(META)
        assert (kind.name(META), kind.label(META), kind.free_nbytes(META), kind.codegen) == ("meta", "meta", 1009, "")
        assert kind.allocator_peak(META, pytest.fail) is None

    def test_refuses_to_measure(self):
        kind = devices.of(META)
        for measure in (kind.record, kind.check_usable, lambda device: kind.workspace(device, lambda: None)):
            with pytest.raises(MeasureError, match=r"^memory can be measured on cpu and cuda, not on meta$"):
                measure(META)
        with pytest.raises(MeasureError), kind.peak_window(META).forward():
            pass


class TestCpu:
    def test_is_labelled_with_its_threads(self, monkeypatch):
        kind = devices.of(CPU)
        for threads, label in [(1, "cpu, 1 thread"), (2, "cpu, 2 threads")]:
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert (kind.name(CPU), kind.label(CPU)) == ("cpu", label)
            assert kind.workspace_settings() == (str(threads),)

    def test_records_allocations_and_marks_on_one_clock(self):
        with devices.record(CPU) as recording:
            before = torch.ones(1009)
            recording.mark("here")
            after = torch.ones(2003)
        first, second = (next(e for e in recording.events if e.nbytes == t.nbytes) for t in (before, after))
        assert first.nanoseconds < recording.marks["here"] < second.nanoseconds
        assert (first.address, second.address) == (before.data_ptr(), after.data_ptr())

    def test_random_states_show_that_a_number_was_drawn(self):
        (state,) = devices.random_states()[:1]
        with devices.of(CPU).fork_rng(CPU):
            torch.rand(1)
            assert not torch.equal(state, devices.random_states()[0])
        assert torch.equal(state, devices.random_states()[0])

    def test_has_no_allocator_statistics(self):
        assert devices.of(CPU).allocator_peak(CPU, pytest.fail) is None

    def test_does_not_round_to_tf32(self):
        assert not devices.of(CPU).rounds_to_tf32(convolution=True)


@pytest.fixture
def gpu(monkeypatch):
    """``torch.cuda`` with a device whose figures the tests set; ``called`` lists the calls that change its state."""
    state = types.SimpleNamespace(called=[], allocated=0, highest=0, reserved=0, requested=0)
    stats = {"requested_bytes.all.current": "requested", "requested_bytes.all.peak": "highest"}
    answers = {
        "is_available": lambda: True,
        "current_device": lambda: 1,
        "get_device_name": lambda device: "NVIDIA H200",
        "mem_get_info": lambda device: (1000, 2000),
        "memory_allocated": lambda device: state.allocated,
        "memory_reserved": lambda device: state.reserved,
        "max_memory_allocated": lambda device: state.highest,
        "max_memory_reserved": lambda device: state.reserved,
        "memory_stats": lambda device: {name: getattr(state, field) for name, field in stats.items()},
        "synchronize": lambda device: state.called.append("synchronize"),
        "reset_peak_memory_stats": lambda device: state.called.append("reset"),
        "empty_cache": lambda: state.called.append("empty_cache"),
        "device": lambda device: contextlib.nullcontext(),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return state


class TestCuda:
    def test_is_the_current_device_and_known_by_its_model(self, gpu):
        kind, device = devices.of(CUDA), torch.device("cuda", 1)
        assert devices.current() == device
        assert kind.name(device) == kind.label(device) == "NVIDIA H200"
        assert for_device(kind.name(device)).name == "h200"

    def test_free_bytes_include_what_the_allocator_holds_unused(self, gpu):
        gpu.reserved, gpu.allocated = 700, 300
        assert devices.of(CUDA).free_nbytes(CUDA) == 1000 + 700 - 300

    def test_peak_of_a_step_from_the_allocators_statistics(self, gpu):
        gpu.allocated, gpu.reserved, gpu.requested = 100, 200, 90

        def step(between):
            assert gpu.called == ["synchronize", "empty_cache", "reset"]
            gpu.allocated = 111
            between()
            gpu.highest, gpu.reserved = 150, 260

        found = devices.of(CUDA).allocator_peak(CUDA, step)
        assert found == AllocatorPeak(peak=50, requested=60, reserved=60, saved=11)
        assert gpu.called[-1] == "synchronize"

    def test_a_measured_step_takes_its_peak_from_statistics_and_its_gradients_from_the_history(self, gpu, monkeypatch):
        weight = nn.Parameter(torch.ones(1009))
        monkeypatch.setattr(Cuda, "record", lambda self, device: devices.of(CPU).record(CPU))
        gpu.highest = 10**6
        memory = measure_memory(lambda: weight.exp().sum(), [weight], device=CUDA)
        assert (memory.peak, memory.requested, memory.reserved, memory.saved) == (10**6, 10**6, 0, 0)
        assert memory.gradients == 4 * 1009

    def test_records_the_history_after_the_start(self, gpu, monkeypatch):
        settings = []
        entries = [
            {"action": "alloc", "addr": 1, "size": 512, "time_us": 1},
            {"action": "alloc", "addr": 2, "size": 1024, "time_us": 2**60},
        ]
        monkeypatch.setattr(
            torch.cuda.memory, "_record_memory_history", lambda enabled, **options: settings.append(enabled)
        )
        monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda device: {"device_traces": [entries, []]})
        with devices.record(CUDA) as recording:
            assert settings == ["all"]
        assert settings == ["all", None]
        assert recording.events == (AllocationEvent(2**60 * 1000, 2, 1024),)

    def test_events_leave_out_requests_segments_and_what_is_older(self):
        trace = [
            {"action": "alloc", "addr": 1, "size": 512, "time_us": 2},
            {"action": "alloc", "addr": 2, "size": 1024, "time_us": 5},
            {"action": "free_requested", "addr": 2, "size": 1024, "time_us": 6},
            {"action": "free_completed", "addr": 2, "size": 1024, "time_us": 7},
            {"action": "segment_alloc", "addr": 2, "size": 2048, "time_us": 8},
        ]
        expected = [AllocationEvent(5000, 2, 1024), AllocationEvent(7000, 2, -1024)]
        assert list(events_of_history(trace, since=5000)) == expected

    def test_seconds_of_a_call_are_those_between_two_events(self, gpu, monkeypatch):
        order = []

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                order.append("record")

            def synchronize(self):
                order.append("synchronize")

            def elapsed_time(self, end):
                return 1500.0  # milliseconds

        monkeypatch.setattr(torch.cuda, "Event", Event)
        assert devices.of(CUDA).call_seconds(CUDA, lambda: order.append("call")) == 1.5
        assert order == ["record", "call", "record", "synchronize"]

    def test_seconds_of_a_step_wait_for_the_device(self, gpu):
        assert seconds_of(lambda: gpu.called.append("step"), CUDA) >= 0
        assert gpu.called == ["synchronize", "step", "synchronize"]

    def test_random_states_are_none_before_cuda_is_initialized(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        assert devices.of(CUDA).random_states() == []
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["one", "two"])
        assert devices.of(CUDA).random_states() == ["one", "two"]

    def test_convolutions_round_to_tf32_by_default_and_products_do_not(self):
        assert devices.of(CUDA).rounds_to_tf32(convolution=True)
        assert not devices.of(CUDA).rounds_to_tf32(convolution=False)

    def test_settings_of_cudnn_are_part_of_a_plans_key(self, monkeypatch):
        kind = devices.of(CUDA)
        before = kind.library_settings()
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark)
        assert kind.library_settings() != before
        assert kind.workspace_settings() == kind.library_settings()


class Third(DeviceKind):
    """Made up: torch's meta device, as if it had 3 GiB free and an allocator in steps of 64 bytes."""

    type = "meta"
    codegen = "triton"
    granularity = 64
    calibration = CalibrationSizes(matrix=2, copied_nbytes=2, elements=2, chain=2, tf32=False, attention=False)

    def is_available(self):
        return True

    def current(self):
        return META

    def check_usable(self, device):
        pass

    def name(self, device):
        return "Third L4"

    def free_nbytes(self, device):
        return 3 * ROUNDING + 17

    @contextlib.contextmanager
    def record(self, device):
        """For any call: 1009 bytes are released inside it, and 2003 are alive at its end."""
        recording = Recording()
        yield recording
        changes = ((1, 1009), (2, 2003), (1, -1009))
        recording.events = tuple(AllocationEvent(10**18 + time, *change) for time, change in enumerate(changes))

    def can_measure_workspace(self, target, dtypes, flops):
        return True


@pytest.fixture
def third(monkeypatch):
    monkeypatch.setattr(devices, "KINDS", (Cpu(), Third()))
    return devices.of(META)


class TestThird:
    """A third device is one more subclass; no other code changes."""

    def test_is_found_and_preferred_to_the_cpu(self, third):
        assert isinstance(third, Third)
        assert devices.current() == devices.usable("meta") == META
        with pytest.raises(MeasureError, match=r"^'gpu' is not a device; try cpu or meta$"):
            devices.usable("gpu")

    def test_auto_budget_asks_it_for_free_bytes(self, third):
        assert free_bytes(META) == 3 * ROUNDING

    def test_a_step_is_measured_by_its_recorder(self, third):
        weight = nn.Parameter(torch.ones(1009))
        memory = measure_memory(lambda: weight.exp().sum(), [weight], device=META)
        assert (memory.peak, memory.requested) == (1009 + 2003, None)
        assert seconds_of(lambda: None, META) >= 0

    def test_the_check_of_a_run_measures_with_its_recorder(self, third):
        window = third.peak_window(META)
        with window.forward():
            pass
        assert window.peak == 1009 + 2003

    def test_workspace_is_measured_and_the_cache_emptied(self, third, monkeypatch):
        monkeypatch.setattr(workspace, "_known", {})
        graph = fx.Graph()
        arguments = [graph.placeholder("a"), graph.placeholder("b")]
        for argument in arguments:
            argument.meta["val"] = torch.empty(3, 3, device=META)
        node = graph.call_function(torch.ops.aten.mm.default, tuple(arguments))
        node.meta["val"] = torch.empty(3, 3, device=META)
        assert workspace.measured_workspace(node) == 1009
        workspace.empty_caches()

    def test_a_graph_on_it_is_named_after_it_and_planned_by_its_preset(self, third):
        node = fx.Graph().placeholder("x")
        node.meta["val"] = torch.empty(3, device=META)
        assert device_name_of([node]) == "Third L4"
        assert for_device("Third L4").name == "l4"
