"""The store's file after additions, interruptions, and edits by others."""

import dataclasses
import errno
import os

import pytest

from rematpass.errors import MeasureError
from rematpass.lab.benchmark.store import Store
from rematpass.report.measurement import Measurement

ROW = Measurement("llama", "eager", "cpu, 2 threads", "2.13.0", peak=7)
OURS = Measurement("llama", "remat@0", "cpu, 2 threads", "2.13.0", source="planner 1", peak=5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made on demand" / "measurements.jsonl"


def test_added_rows_are_read_again(path):
    store = Store(path)
    for row in (ROW, OURS):
        store.add(row)
    again = Store(path)
    assert again.rows() == [ROW, OURS]
    assert again.get(dataclasses.replace(ROW, peak=None)) == ROW
    assert (store.added, again.added) == (2, 0)


def test_the_last_line_of_a_key_counts(path):
    timed = dataclasses.replace(ROW, step_seconds=0.5)
    for row in (ROW, OURS, timed):
        Store(path).add(row)
    assert len(path.read_text().splitlines()) == 3
    assert Store(path).rows() == [OURS, timed]


def test_an_incomplete_last_line_is_removed(path):
    Store(path).add(ROW)
    path.write_text(path.read_text() + OURS.to_json()[:20])
    Store(path).add(OURS)
    assert Store(path).rows() == [ROW, OURS]


def test_another_invalid_line_is_named_in_the_error(path):
    Store(path).add(ROW)
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(MeasureError, match="line 1: not a measurement: 'nonsense'"):
        Store(path)


def test_rows_are_those_of_the_planner_measured_last():
    store = Store()
    newer = dataclasses.replace(OURS, source="planner 2", peak=3)
    other_device = dataclasses.replace(OURS, device="NVIDIA H100")
    for row in (OURS, newer, ROW, other_device):
        store.add(row)
    assert store.rows("llama", "cpu, 2 threads") == [newer, ROW]
    assert store.rows(device="NVIDIA H100") == [other_device]
    assert store.get(OURS) == OURS


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(MeasureError, match=r"cannot write .*: File exists"):
        Store(blocked / "measurements.jsonl").add(ROW)


def test_a_full_disk_is_named_and_costs_only_the_row_being_written(path, monkeypatch):
    Store(path).add(ROW)
    whole = path.read_bytes()
    with path.open("ab") as file:  # what a full disk leaves of a row
        file.write(OURS.to_json().encode()[:20])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(path)
    assert path.read_bytes() == whole
    monkeypatch.setattr("rematpass.lab.benchmark.store.os.fsync", full)
    with pytest.raises(MeasureError, match=r"cannot write .*measurements.jsonl: No space left on device"):
        store.add(OURS)
    assert Store(path).get(ROW) == ROW
