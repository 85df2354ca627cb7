"""The bytes alive over time, from events made by hand."""

from rematpass.compiler.ops.allocator_trace import Event, cuda_events, live_bytes


def events(*changes: tuple[int, int]) -> tuple[Event, ...]:
    """Events at times 0, 1, 2, ... from (address, signed bytes)."""
    return tuple(Event(time, address, nbytes) for time, (address, nbytes) in enumerate(changes))


def totals(*changes: tuple[int, int], gradients: frozenset[int] = frozenset()) -> list[tuple[int, int]]:
    return [(m.nbytes, m.gradients) for m in live_bytes(events(*changes), gradients)]


class TestCourse:
    def test_bytes_alive_after_each_event(self):
        assert totals((1, 3), (2, 5), (1, -3), (3, 7)) == [(3, 0), (8, 0), (5, 0), (12, 0)]

    def test_release_of_what_stood_before_does_not_count(self):
        assert totals((9, -11), (1, 3)) == [(0, 0), (3, 0)]

    def test_release_counts_the_size_that_was_allocated_here(self):
        assert totals((1, 3), (1, -11)) == [(3, 0), (0, 0)]

    def test_address_handed_out_twice_without_a_release_holds_one_block(self):
        assert totals((1, 3), (1, 5)) == [(3, 0), (5, 0)]

    def test_only_the_last_tenant_of_an_address_is_the_gradient(self):
        changes = (1, 3), (1, -3), (2, 5), (1, 7)
        assert totals(*changes, gradients=frozenset({1})) == [(3, 0), (0, 0), (5, 0), (12, 7)]

    def test_gradient_that_stood_before_is_none_of_the_step(self):
        assert totals((2, 5), (1, -7), gradients=frozenset({1})) == [(5, 0), (5, 0)]

    def test_nothing_allocated(self):
        assert live_bytes((), set()) == ()


class TestCudaEvents:
    def test_requests_and_what_is_older_than_the_span_are_left_out(self):
        trace = [
            {"action": "alloc", "addr": 1, "size": 512, "time_us": 2},
            {"action": "alloc", "addr": 2, "size": 1024, "time_us": 5},
            {"action": "free_requested", "addr": 2, "size": 1024, "time_us": 6},
            {"action": "free_completed", "addr": 2, "size": 1024, "time_us": 7},
            {"action": "segment_alloc", "addr": 2, "size": 2048, "time_us": 8},
        ]
        assert list(cuda_events(trace, since=5000)) == [Event(5000, 2, 1024), Event(7000, 2, -1024)]
