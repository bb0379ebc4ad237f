"""Read what an offline W&B run left: its .wandb file is a log of protobuf records in LevelDB's framing."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32 * 1024
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What `wandb sync` would send of one folder."""

    name: str = ""
    id: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def outputs(self) -> list[Any]:
        """Its artifacts, but for the copies that W&B makes of tables."""
        return [artifact for artifact in self.artifacts if artifact.type != "run_table"]

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        found = {**self.summary, **{key: value for row in self.history for key, value in row.items()}}
        return {key: v for key, v in found.items() if isinstance(v, dict) and v.get("_type") == "table-file"}

    @property
    def metrics(self) -> set[str]:
        return {key for row in (*self.history, self.summary) for key in row if not key.startswith("_")}


def offline_runs(root: Path) -> dict[str, OfflineRun]:
    """The runs below root/wandb, by name."""
    runs = [read_run(folder) for folder in sorted(root.glob("wandb/offline-run-*"))]
    assert len({run.name for run in runs}) == len(runs)
    return {run.name: run for run in runs}


def read_run(folder: Path) -> OfflineRun:
    (file,) = folder.glob("*.wandb")
    run = OfflineRun()
    for record in records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            told = record.run
            run.name, run.id, run.group, run.job_type = told.display_name, told.run_id, told.run_group, told.job_type
            run.tags = list(told.tags)
            run.config |= {item.key: json.loads(item.value_json) for item in told.config.update}
        elif kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "metric" and record.metric.step_metric:
            run.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "alert":
            run.alerts.append((record.alert.title, record.alert.text))
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def records(data: bytes) -> Iterator[Record]:
    """Every whole record; of one that was cut off by a kill, nothing."""
    if not data:
        return
    mark, magic, _ = struct.unpack_from("<4sHB", data)
    assert (mark, magic) == (b":W&B", 0xBEE1)
    place, parts = 7, b""
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:  # a block's end that holds no header
            place += _BLOCK - place % _BLOCK
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + 7 : place + 7 + size]
        if len(part) < size:
            return
        assert zlib.crc32(bytes([kind]) + part) == checksum
        place += 7 + size
        parts = part if kind in (_FULL, _FIRST) else parts + part
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)


def _values(items: Any) -> dict[str, Any]:
    """Values by name; what a name of several parts belongs to, a table say, is a dict again."""
    found: dict[str, Any] = {}
    for item in items:
        *above, last = list(item.nested_key) or [item.key]
        place = found
        for name in above:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found
