"""Stores plans beside Inductor's compile cache, for processes that get the compiled graph from there.

On a cache hit the partitioner does not run, so there is no plan to log. The backend then reads what was stored under
the same key when the partitioner ran: the summary, for the log line, and the report, for ``REMAT_REPORT_DIR``.

torch does not expose its own key, so the key is made here, from the partitioner's uuid, the code of Dynamo's graph, its
inputs and the settings. Under ``enable()`` there is no call around the compilation to do this in; if a report is
requested there, the partitioner's uuid is random, so that nothing hits.
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
    """Around the compilation of ``gm``: store its plan, or log the stored plan if the compilation does not plan.

    ``options``: those of the compiler that calls the partitioner. Raises only what the compilation raises.
    """
    name = "" if settings.caches_are_disabled() else key(partitioner.uuid(), gm, example_inputs, options)
    yield
    if name and partitioner.planned is not None:
        if partitioner.planned.is_decided:
            keep(name, partitioner.planned)
    elif name and (found := find(name)) is not None:
        summary, files = found
        tell(summary, always=bool(partitioner.config.memory_budget.given), cached=True)
        if partitioner.config.report_dir:
            _write(files, Path(partitioner.config.report_dir))


def key(uuid: bytes, gm: fx.GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any]) -> str:
    """The key of a compilation: equal in all processes that compile the same code with the same settings."""
    digest = hashlib.sha256(uuid)
    for path, module in gm.named_modules():
        if isinstance(module, fx.GraphModule):
            digest.update(f"{path}\n{module.code}\n".encode())
    tensors = [*gm.named_parameters(), *gm.named_buffers()]
    for name, value in [*tensors, *((str(i), x) for i, x in enumerate(example_inputs))]:
        digest.update(f"{name} {_described(value)}\n".encode())
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
    """Store a record under ``name``. If that fails, later hits log no plan, and training continues."""
    try:
        files = render(record.report())
        document = {"format": FORMAT, "summary": dataclasses.asdict(record.summary), "files": files}
        write_text(_path(name), gzip.compress(json.dumps(document).encode(), compresslevel=1, mtime=0))
    except Exception:
        log.debug("the plan could not be stored", exc_info=True)


def find(name: str) -> tuple[Summary, dict[str, str]] | None:
    """The summary and the files of the report, by name, stored under ``name``; None if none can be read."""
    try:
        document = json.loads(gzip.decompress(_path(name).read_bytes()))
        return (Summary(**document["summary"]), document["files"]) if document["format"] == FORMAT else None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        log.debug("no plan is stored as %s: %s", name, error)
        return None


def _write(files: Mapping[str, str], directory: Path) -> None:
    try:
        for name, text in files.items():
            write_text(directory / name, text)
    except RematError as error:
        log.warning("no report of a graph from the compile cache: %s", error)


def _path(name: str) -> Path:
    return Path(_torch.cache_directory()) / "rematpass" / name[:2] / f"{name}.json.gz"
