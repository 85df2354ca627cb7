"""The bytes alive over time, from events made by hand."""

from rematpass.compiler.devices.allocator_trace import AllocationEvent, live_bytes


def events(*changes: tuple[int, int]) -> tuple[AllocationEvent, ...]:
    """Events at times 0, 1, 2, ... from (address, signed bytes)."""
    return tuple(AllocationEvent(time, address, nbytes) for time, (address, nbytes) in enumerate(changes))


def totals(*changes: tuple[int, int], gradients: frozenset[int] = frozenset()) -> list[tuple[int, int]]:
    return [(m.nbytes, m.gradients) for m in live_bytes(events(*changes), gradients)]


def test_bytes_alive_after_each_event():
    assert totals((1, 3), (2, 5), (1, -3), (3, 7)) == [(3, 0), (8, 0), (5, 0), (12, 0)]


def test_releases_of_earlier_allocations_are_ignored():
    assert totals((9, -11), (1, 3)) == [(0, 0), (3, 0)]


def test_a_release_counts_with_the_size_of_its_allocation():
    assert totals((1, 3), (1, -11)) == [(3, 0), (0, 0)]


def test_an_address_allocated_twice_without_a_release_holds_one_block():
    assert totals((1, 3), (1, 5)) == [(3, 0), (5, 0)]


def test_only_the_last_block_at_an_address_is_the_gradient():
    changes = (1, 3), (1, -3), (2, 5), (1, 7)
    assert totals(*changes, gradients=frozenset({1})) == [(3, 0), (0, 0), (5, 0), (12, 7)]


def test_a_gradient_allocated_earlier_does_not_count():
    assert totals((2, 5), (1, -7), gradients=frozenset({1})) == [(5, 0), (5, 0)]


def test_no_events_give_no_bytes():
    assert live_bytes((), set()) == ()
