"""Measurements in a file, one JSON line each: appended as they are made, so that an interruption loses none.

The last line of a key counts: a measurement is written when its bytes are known and once more with its step times.
Which planner made a row is part of its key; ``rows`` returns those of the planner that was measured last.
"""

from __future__ import annotations

import os
from pathlib import Path

from rematpass.errors import MeasureError
from rematpass.report.measurement import Measurement

Key = tuple[str, str, str, str, str]


class Store:
    """``path``: the file, made when the first measurement is added; None keeps everything in memory.

    Raises:
        MeasureError: the file cannot be read, or a line in it is no measurement. (A last line that an interruption
            cut off is passed over.)
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.added = 0  # how many measurements this object was given
        self._rows: dict[Key, Measurement] = {}
        if path is None or not path.exists():
            return
        try:
            text = path.read_text()
        except OSError as error:
            raise MeasureError(f"cannot read {path}: {error.strerror}") from error
        lines = text.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                self._keep(Measurement.from_json(line))
            except MeasureError as error:
                if number < len(lines) or text.endswith("\n"):
                    raise MeasureError(f"{path}, line {number}: {error}") from error
        if text and not text.endswith("\n"):
            path.write_text("".join(line + "\n" for line in lines[:-1]))

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement, at once on the disk as well.

        Raises:
            MeasureError: the file cannot be written.
        """
        self._keep(measurement)
        self.added += 1
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(measurement.to_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MeasureError(f"cannot write {self.path}: {error.strerror}") from error

    def get(self, blank: Measurement) -> Measurement | None:
        """What was measured under the key of ``blank``."""
        return self._rows.get(blank.key)

    def all_rows(self) -> list[Measurement]:
        """What is there, of older planners too, the oldest first."""
        return list(self._rows.values())

    def rows(self, model: str = "", device: str = "", torch: str = "") -> list[Measurement]:
        """What is there of a model on a device (all of them by default); of each strategy the last that was added."""
        latest: dict[tuple[str, str, str, str], Measurement] = {}
        for row in list(self._rows.values()):  # others may add meanwhile
            wanted = model in ("", row.model) and device in ("", row.device) and torch in ("", row.torch)
            if wanted:
                latest.pop(row.key[:4], None)
                latest[row.key[:4]] = row
        return list(latest.values())

    def _keep(self, measurement: Measurement) -> None:
        self._rows.pop(measurement.key, None)
        self._rows[measurement.key] = measurement
