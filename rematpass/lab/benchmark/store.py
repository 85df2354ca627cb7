"""Measurements in a file, one JSON line each, appended as they are made, so that an interruption loses none.

The last line of a key counts: a measurement is written when its bytes are known, and again with its step times. The
planner's version is part of a row's key; ``rows`` returns the rows of the planner that was measured last.
"""

from __future__ import annotations

import os
from pathlib import Path

from rematpass.errors import MeasureError
from rematpass.report.measurement import Measurement

Key = tuple[str, str, str, str, str]


class Store:
    """``path``: the file, created with the first measurement; None keeps everything in memory.

    Raises:
        MeasureError: the file cannot be read, or a line is not a measurement. (An incomplete last line, which an
            interruption or a full disk leaves, is removed.)
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.added = 0  # measurements added to this object
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
            os.truncate(path, len(text[: text.rfind("\n") + 1].encode()))

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement, and append it to the file at once.

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
        """The measurement with the key of ``blank``."""
        return self._rows.get(blank.key)

    def all_rows(self) -> list[Measurement]:
        """All measurements, including those of older planners, oldest first."""
        return list(self._rows.values())

    def rows(self, model: str = "", device: str = "", torch: str = "") -> list[Measurement]:
        """The last measurement of each strategy, on all models and devices or only on those given."""
        latest: dict[tuple[str, str, str, str], Measurement] = {}
        for row in list(self._rows.values()):  # other threads may add rows meanwhile
            wanted = model in ("", row.model) and device in ("", row.device) and torch in ("", row.torch)
            if wanted:
                latest.pop(row.key[:4], None)
                latest[row.key[:4]] = row
        return list(latest.values())

    def _keep(self, measurement: Measurement) -> None:
        self._rows.pop(measurement.key, None)
        self._rows[measurement.key] = measurement
