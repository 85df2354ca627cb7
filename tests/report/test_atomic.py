"""Files are complete or absent: a full disk leaves nothing behind."""

import errno
import os
from pathlib import Path

import pytest

from rematpass.errors import ReportError
from rematpass.report import atomic
from rematpass.report.atomic import replacing, write_text


@pytest.fixture
def full_disk(monkeypatch):
    """Every write into a temporary file fails as on a full disk, after half of the text."""

    def write(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write)
    monkeypatch.setattr(Path, "write_text", lambda path, text, *_: write(path, text.encode()))


def test_a_full_disk_leaves_no_file(tmp_path, full_disk):
    with pytest.raises(ReportError) as raised:
        write_text(tmp_path / "page.md", "a page")
    assert str(raised.value) == (
        f"cannot write {tmp_path}/page.md: No space left on device; free some space or write elsewhere"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, full_disk):
    (tmp_path / "page.md").touch()
    os.truncate(tmp_path / "page.md", 7)
    with pytest.raises(ReportError):
        write_text(tmp_path / "page.md", "another page")
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("page.md", 7)]


def test_an_interruption_leaves_no_file(tmp_path):
    def interrupted():
        with replacing(tmp_path / "page.md") as file:
            file.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "target.md").write_text("old")
    (tmp_path / "link.md").symlink_to("target.md")
    write_text(tmp_path / "link.md", "new")
    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "target.md").read_text() == "new"


def test_what_is_not_a_regular_file_is_written_directly(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert pipe.is_fifo()


def test_others_may_read_the_file(tmp_path):
    write_text(tmp_path / "page.md", "a page")
    assert (tmp_path / "page.md").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_full_disk_leaves_no_picture(tmp_path, monkeypatch, suffix):
    figures = pytest.importorskip("matplotlib.figure")
    from rematpass.report import pictures
    from rematpass.report.measurement import Measurement

    def savefig(self, path, **_):
        atomic.Path(path).touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(figures.Figure, "savefig", savefig)
    row = Measurement("m", "eager", "cpu", "2", peak=7, step_ratio=(1.0, 1.0, 1.0))
    with pytest.raises(ReportError, match=r"cannot write .*picture.*: No space left on device"):
        pictures.seconds_against_peak([row], "a heading", tmp_path / f"picture{suffix}")
    assert list(tmp_path.iterdir()) == []
