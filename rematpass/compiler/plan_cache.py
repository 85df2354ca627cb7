"""What was planned, kept beside Inductor's compile cache, for the processes that take the compiled graph from there.

On a hit the partitioner does not run, and would say nothing. So the backend looks whether it has run, and if not, takes
what was kept under the same key when it did: the summary, for the log line, and the finished report, for a
``REMAT_REPORT_DIR``.

The key is ours, since torch's own is not handed out: the partitioner's uuid, Dynamo's graph as code, its inputs, and
the settings that reach it. Programs that use ``enable()`` give no place to look from: where those ask for a report,
the partitioner's uuid is new each time, so that nothing hits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch, devices
from rematpass.compiler.inductor import settings
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.planned import Record, tell
from rematpass.errors import RematError
from rematpass.report.atomic import write_text
from rematpass.report.files import render
from rematpass.report.summary import Summary

log = logging.getLogger("rematpass")
FORMAT = 1


@contextlib.contextmanager
def keeping(
    partitioner: RematPartitioner, gm: fx.GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any]
) -> Iterator[None]:
    """Around the compilation of ``gm``: keep what is planned in it, or tell what was kept when nothing is.

    ``options`` are those of the compiler behind the partitioner. Nothing is raised that the compilation does not.
    """
    name = "" if settings.caches_are_disabled() else key(partitioner.uuid(), gm, example_inputs, options)
    yield
    if name and partitioner.planned is not None:
        keep(name, partitioner.planned)
    elif name and (found := find(name)) is not None:
        summary, files = found
        tell(summary, always=bool(partitioner.config.memory_budget.given), cached=True)
        if partitioner.config.report_dir:
            _write(files, Path(partitioner.config.report_dir))


def key(uuid: bytes, gm: fx.GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any]) -> str:
    """The same in every process that compiles the same code with the same settings, and in no other."""
    digest = hashlib.sha256(uuid)
    for path, module in gm.named_modules():
        if isinstance(module, fx.GraphModule):
            digest.update(f"{path}\n{module.code}\n".encode())
    held = [*gm.named_parameters(), *gm.named_buffers()]
    for place, value in [*held, *((str(i), x) for i, x in enumerate(example_inputs))]:
        digest.update(f"{place} {_described(value)}\n".encode())
    autocast = [kind.autocast_enabled() for kind in devices.KINDS]
    plain = {name: value for name, value in options.items() if isinstance(value, (bool, int, float, str))}
    digest.update(repr((sorted(plain.items(), key=str), settings.plain_settings(), autocast)).encode())
    return digest.hexdigest()


def _described(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return str(value)
    strides = value.stride() if value.layout is torch.strided else ()
    return f"{value.dtype} {tuple(value.shape)} {strides} {value.device} {value.requires_grad}"


def keep(name: str, record: Record) -> None:
    """Write what was planned; where that fails, a later hit has nothing to tell, and training does not care."""
    try:
        files = render(record.report())
        document = {"format": FORMAT, "summary": dataclasses.asdict(record.summary), "files": files}
        write_text(_path(name), gzip.compress(json.dumps(document).encode(), compresslevel=1, mtime=0))
    except Exception:
        log.debug("what was planned could not be kept", exc_info=True)


def find(name: str) -> tuple[Summary, dict[str, str]] | None:
    """The summary and the report's files, by name, that were kept under ``name``; None where nothing can be read."""
    try:
        document = json.loads(gzip.decompress(_path(name).read_bytes()))
        return (Summary(**document["summary"]), document["files"]) if document["format"] == FORMAT else None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        log.debug("no plan is kept as %s: %s", name, error)
        return None


def _write(files: Mapping[str, str], directory: Path) -> None:
    try:
        for name, text in files.items():
            write_text(directory / name, text)
    except RematError as error:
        log.warning("no report of a graph from the compile cache: %s", error)


def _path(name: str) -> Path:
    return Path(_torch.cache_directory()) / "rematpass" / name[:2] / f"{name}.json.gz"
