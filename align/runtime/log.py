"""The log of a running step: to the console, to JSON lines in its artifact, and to the tracker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.runtime.progress import Progress
from align.runtime.tracking import NoTracker, Tracker
from align.store.artifacts import read_json_lines

Metrics = dict[str, float]
_GROWTH = 1.25  # a table is sent again when its file has grown by this factor


class RunLog:
    """The log of one step. Only rank 0 writes; in other processes the writing methods do nothing.

    Attributes:
        last_step: the last step of the stage's own axis. Its tables are always sent.
    """

    def __init__(
        self, out: Path, progress: Progress, tracker: Tracker | None = None, is_main: bool = True
    ):
        self._out, self._progress, self._is_main = out, progress, is_main
        self._tracker: Tracker = tracker or NoTracker()
        self._sent: dict[str, int] = {}  # bytes of each table when the tracker got it
        self.last_step = 0

    @property
    def metrics_file(self) -> Path:
        return self._out / "metrics.jsonl"

    def info(self, message: str) -> None:
        """Print a line for the user."""
        self._progress.say(message)

    def metrics(self, metrics: Metrics, step: int) -> None:
        """Add a line to metrics.jsonl and to the tracker.

        Args:
            metrics: values by name.
            step: the position on the stage's own axis.
        """
        if not self._is_main:
            return
        # The tracker comes first: at its start it sends what metrics.jsonl has from an earlier
        # process, and this line would be sent twice.
        self._tracker.log(metrics, step)
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._progress.show(metrics)

    def read_metrics(self) -> list[Metrics]:
        """Return all lines of metrics.jsonl, including those of earlier processes of this step."""
        return read_json_lines(self.metrics_file)

    def event(self, step: int, name: str, message: str) -> None:
        """Report something that needs attention, to the console, events.jsonl and the tracker."""
        if not self._is_main:
            return
        self.info(f"{name}: {message}")
        self._tracker.alert(name, message)
        with (self._out / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "name": name, "message": message}) + "\n")

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows with equal keys to NAME.jsonl, and send them to the tracker as a table."""
        if not self._is_main or not rows:
            return
        with (self._out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._tracker.table(name, list(rows[0]), [list(row.values()) for row in rows])

    def append(self, name: str, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows of one step to NAME.jsonl. Sometimes send the whole table to the tracker.

        A tracker's table cannot grow. If the whole table were sent at every step, the space would
        grow with the square of the steps. So it is sent only when it has grown by a quarter, and at
        the last step.
        """
        if not self._is_main or not rows:
            return
        file = self._out / f"{name}.jsonl"
        with file.open("a", encoding="utf-8") as out:
            out.writelines(
                json.dumps({"step": step, **row}, ensure_ascii=False, default=str) + "\n"
                for row in rows
            )
        size = file.stat().st_size
        if step != self.last_step and size < _GROWTH * self._sent.get(name, 0):
            return
        self._sent[name] = size
        every = read_json_lines(file)
        columns = list(dict.fromkeys(column for row in every for column in row))
        self._tracker.table(
            name, columns, [[row.get(column) for column in columns] for row in every]
        )
