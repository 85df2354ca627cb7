"""``rematpass explain``: plan a model, or a joint graph from a file, and write the report on the plan."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rematpass.commands.arguments import Commands, add_command, add_planning_options, planning_options, read_config
from rematpass.commands.plan_file import plan_graph, read_graph
from rematpass.config import Config
from rematpass.core.hardware import PRESETS
from rematpass.errors import MeasureError
from rematpass.report.report import Report

if TYPE_CHECKING:
    from rich.console import Console

_EXAMPLES = """examples:
  rematpass explain                                 a small GPT, without a budget
  rematpass explain llama --budget 0.3              a model of the catalog
  rematpass explain train:make --budget 2GiB        make() in train.py, which returns (module, step)
  rematpass explain reports/graph-0-0-*.graph.json  a joint graph from a file; needs no torch
  rematpass explain --open                          show the page in the browser

In your own training run: REMAT_REPORT_DIR=reports python train.py
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        "explain",
        help="what is saved, what is recomputed, why, and what more memory would buy",
        description="Plan a model, print the plan, and write its report: a page, text, JSON, and a trace for Perfetto.",
        examples=_EXAMPLES,
    )
    parser.add_argument("target", nargs="?", default="tiny-gpt", metavar="MODEL", help="a model's name, "
                        "package.module:function, or a joint graph's file (default: tiny-gpt)")  # fmt: skip
    add_planning_options(parser)
    parser.add_argument("--hardware", metavar="NAME", help=f"the preset for the cost model: {', '.join(PRESETS)}")
    parser.add_argument("--device", default="cpu", help="the model's device: cpu or cuda (default: cpu)")
    parser.add_argument("--output", type=Path, default=Path("rematpass-report"), metavar="DIR",
                        help="the report's directory (default: rematpass-report)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the JSON report instead of text")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rematpass.report.files import write
    from rematpass.report.text import show

    options = {**planning_options(arguments), "hardware": arguments.hardware}
    config = read_config(options)
    _refuse_unknown_names(arguments)
    console, aside = Console(highlight=False), Console(stderr=True, highlight=False)
    for report in _reports(arguments, config, aside):
        paths = write(report, arguments.output)
        if arguments.json:
            print(report.to_json())
        else:
            show(report, console)
        aside.print(f"The report: {paths['html']} (and .txt, .json, .trace.json, .graph.json)", soft_wrap=True)
        if arguments.open:
            import webbrowser

            webbrowser.open(paths["html"].resolve().as_uri())
    return 0


def _refuse_unknown_names(arguments: argparse.Namespace) -> None:
    if not arguments.target.endswith(".json"):
        from rematpass.lab.models.names import check_device, check_model

        check_model(arguments.target)
        check_device(arguments.device)


def _reports(arguments: argparse.Namespace, config: Config, aside: Console) -> list[Report]:
    if arguments.target.endswith(".json"):
        with aside.status("planning"):
            return [plan_graph(read_graph(Path(arguments.target)), config).report()]
    from rematpass.compiler.plan_only import plan_only
    from rematpass.lab.measure.memory_and_time import loss_of
    from rematpass.lab.models.build import build, load

    with aside.status(f"building {arguments.target}, capturing its joint graph, planning"):
        model = load(arguments.target) if ":" in arguments.target else build(arguments.target, device=arguments.device)
        records = plan_only(model.module, lambda: loss_of(model.step), config)
    if not records:
        raise MeasureError(f"{arguments.target}: nothing was planned; does its step run the module with gradients?")
    return [record.report(arguments.target) for record in records]
