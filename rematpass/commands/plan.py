"""``rematpass plan``: plan saved joint graphs, for any device, and compare their peaks with committed ones.

A lock file stores, for each graph, the settings and the resulting peak. ``--check`` plans again under the same settings
and fails if a peak has risen: a memory test for CI without a GPU and without torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from rematpass.commands.arguments import Commands, add_command, add_planning_options, planning_options
from rematpass.commands.plan_file import Planned, plan_graph, read_graph
from rematpass.config import Config
from rematpass.core.hardware import PRESETS
from rematpass.core.solve.bound import lower_bound
from rematpass.errors import ConfigError, ReportError
from rematpass.report.atomic import write_text
from rematpass.units import format_bytes, format_percent, format_seconds

LOCK_FORMAT = 1
_SETTINGS = ("memory_budget", "solver", "max_recompute", "device")
_DEFAULTS = {"memory_budget": "1", "solver": "ladder", "max_recompute": "1", "device": ""}
_EXAMPLES = """examples:
  rematpass plan gpt.graph.json                              the fastest plan
  rematpass plan gpt.graph.json --device h200 --budget 8GiB  the same model on an H200
  rematpass plan gpt.graph.json --frontier                   every plan: its peak and its seconds
  rematpass plan *.graph.json --budget 8GiB --lock plans.lock.json
  rematpass plan *.graph.json --check plans.lock.json        exit code 1 if a peak has risen

REMAT_REPORT_DIR=reports writes the joint graph of every planned graph to reports/*.graph.json.
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        "plan",
        help="plan saved joint graphs, without torch or a GPU",
        description="Plan joint graphs from files, on any machine, for any device's preset.",
        examples=_EXAMPLES,
    )
    parser.add_argument("graphs", nargs="+", type=Path, metavar="GRAPH.json", help="a joint graph's file")
    add_planning_options(parser)
    parser.add_argument("--device", metavar="NAME", help=f"a preset: {', '.join(PRESETS)} (default: the graph's own)")
    parser.add_argument("--frontier", action="store_true", help="show every plan of the ladder")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    lock = parser.add_mutually_exclusive_group()
    lock.add_argument("--lock", type=Path, metavar="FILE", help="write the settings and peaks to FILE")
    lock.add_argument("--check", type=Path, metavar="FILE", help="compare with FILE; exit code 1 if a peak has risen")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    given = {**planning_options(arguments), "device": arguments.device}
    locked = _read_lock(arguments.check) if arguments.check else {}
    entries, documents, risen = {}, [], False
    if arguments.lock or arguments.check:
        _refuse_equal_names(arguments.graphs)
    for path in arguments.graphs:
        was = _entry(locked, path, arguments.check) if arguments.check else {}
        settings = _settings(given, was)
        planned = _plan(path, settings)
        entries[_name(path)] = _locked(planned, settings)
        verdict, rose = _compare(planned.summary.planned_peak, was)
        risen |= rose
        if arguments.json:
            documents.append(_document(path, planned, verdict))
        else:
            _show(path, planned, verdict, frontier=arguments.frontier)
    if arguments.json:
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    if arguments.lock:
        text = json.dumps({"format": LOCK_FORMAT, "graphs": entries}, indent=2, sort_keys=True)
        write_text(arguments.lock, text + "\n")
    return int(risen)


def _settings(given: dict[str, object], was: dict[str, Any]) -> dict[str, str]:
    """The settings of the command line, then those of the lock, or without a lock the environment and the defaults.

    A check against a lock does not depend on environment variables.
    """
    if was:
        return {name: str(given[name] if given[name] is not None else was[name]) for name in _SETTINGS}
    config = Config.read({name: value for name, value in given.items() if name != "device"})
    given_budget = config.memory_budget.given.partition("=")[2]
    found = {"memory_budget": given_budget, "solver": config.solver, "max_recompute": f"{config.max_recompute:g}"}
    found["device"] = str(given["device"] or config.hardware)
    return {name: found[name] or _DEFAULTS[name] for name in _SETTINGS}


def _plan(path: Path, settings: dict[str, str]) -> Planned:
    options = {name: value for name, value in settings.items() if name != "device"}
    return plan_graph(read_graph(path), Config.read(options), settings["device"])


def _locked(planned: Planned, settings: dict[str, str]) -> dict[str, Any]:
    summary = planned.summary
    return {
        **settings,
        "planned_peak": summary.planned_peak,
        "floor": summary.floor,
        "ceiling": summary.ceiling,
        "plan_hash": summary.plan_hash,
    }


def _read_lock(path: Path) -> dict[str, dict[str, Any]]:
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["format"] != LOCK_FORMAT:
            raise ReportError(f"{path} has another format than {LOCK_FORMAT}; write it again with --lock")
        entries: dict[str, dict[str, Any]] = {_name(Path(k)): entry for k, entry in document["graphs"].items()}
        for entry in entries.values():
            int(entry["planned_peak"]), [entry[name] for name in _SETTINGS]
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror or error}; --lock writes it") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{path} is not a lock file; --lock writes one") from error
    return entries


def _name(graph: Path) -> str:
    """The graph's name in a lock: its file name without the plan's hash, which report files have.

    The hash changes with the model, and a lock is compared with changed models.
    """
    return re.sub(r"-[0-9a-f]{12}(?=\.graph\.json$)", "", graph.name)


def _refuse_equal_names(graphs: list[Path]) -> None:
    first: dict[str, Path] = {}
    for graph in graphs:
        other = first.setdefault(_name(graph), graph)
        if other != graph:
            raise ConfigError(
                f"{other} and {graph} have the same name in a lock, {_name(graph)}; give one of them, "
                "or write the reports of different programs to different directories"
            )


def _entry(locked: dict[str, dict[str, Any]], graph: Path, lock: Path) -> dict[str, Any]:
    if _name(graph) not in locked:
        raise ConfigError(
            f"{lock} does not contain {_name(graph)}; it contains {', '.join(locked) or 'nothing'}. "
            "To write it again, use --lock"
        )
    return locked[_name(graph)]


def _compare(peak: int, was: dict[str, Any]) -> tuple[str, bool]:
    """Compare the peak with the committed one, in words, and return whether it has risen."""
    if not was:
        return "", False
    old = int(was["planned_peak"])
    if peak == old:
        return f"as committed: {format_bytes(old)}", False
    share = format_percent(abs(peak - old) / (old or 1))
    change = f"{format_bytes(abs(peak - old))} ({share}), from {format_bytes(old)} to {format_bytes(peak)}"
    return (f"RISEN by {change}", True) if peak > old else (f"fallen by {change}; --lock commits it", False)


def _document(path: Path, planned: Planned, verdict: str) -> dict[str, Any]:
    bound = lower_bound(planned.problem, [rung.peak for rung in planned.ladder.rungs])
    return {
        "file": str(path),
        "hardware": planned.hardware.name,
        "summary": dataclasses.asdict(planned.summary),
        "frontier": [
            {"peak": r.peak, "seconds": r.seconds, "solver": r.plan.solver, "bound_seconds": bound.seconds(r.peak)}
            for r in planned.ladder.rungs
        ],
        **({"check": verdict} if verdict else {}),
    }


def _above(gap: float | None) -> str:
    return "" if gap is None else f", at most {format_percent(gap)} above the proven bound"


def _show(path: Path, planned: Planned, verdict: str, *, frontier: bool) -> None:
    from rich.console import Console

    from rematpass.report.text import frontier_table

    summary = planned.summary
    share = summary.recompute_seconds / (summary.step_seconds - summary.recompute_seconds or 1.0)
    print(
        f"{path.name}: planned peak {format_bytes(summary.planned_peak)} (budget {summary.budget}; floor "
        f"{format_bytes(summary.floor)}, ceiling {format_bytes(summary.ceiling)}), a step "
        f"{format_seconds(summary.step_seconds)} on {planned.hardware.name} by its cost model, including "
        f"{format_seconds(summary.recompute_seconds)} of recompute (+{format_percent(share)}){_above(summary.gap)}"
    )
    if verdict:
        print(f"{path.name}: {verdict}")
    if frontier:
        console = Console(highlight=False)
        console.print(frontier_table(planned.report(), narrow=console.width < 100))
