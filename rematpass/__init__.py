"""Train in less memory: a rematerialization backend for ``torch.compile``.

    REMAT_MEMORY_BUDGET=8GiB python train.py        # where train.py has torch.compile(model, backend="remat")

The backend takes the joint graph of forward and backward, decides for every value that backward needs whether to save
it or to recompute it, and hands both graphs on to Inductor. One direction, one type handed on at each step:

    joint GraphModule --capture--> JointGraph --cost--> seconds --solve--> Plan --verify--> Plan --emit--> (fwd, bwd)
                                                                Plan --simulate--> Timeline --report--> text, JSON, HTML

The map, in that order. A module imports only from those above it in its own directory, from the first three files, and
from the directories that its directory may use: ``report`` uses ``core``; ``compiler`` both; ``lab`` all three.

    errors.py            every exception, one class per cause
    units.py             "8GiB" <-> bytes, seconds, percent
    config.py            the settings; the one reader of the environment
    core/                decides; no torch
      ragged.py            lists of different lengths as arrays
      graph.py           JointGraph: ops and values
      sizes.py           a joint graph at other sizes
      schedule.py        Plan: Run and Drop, step by step
      hardware.py        presets: FLOP/s and bytes/s
      cost.py            op -> seconds
      liveness.py        when each copy of a value lives
      simulate.py        JointGraph + Plan -> Timeline: live bytes at every step, the peak, seconds of recompute
      verify.py          the judge: replays a schedule, rejects a wrong one
      solve/             what is saved and what is recomputed
        schedule_late.py  a set of saved values -> a Plan
        mincut.py        the parametric cut
        problem.py       what every solver is given, and their one signature
        baselines.py     save_all, recompute_all, chen_sqrt
        time_axis.py       the timeline that bounds and prices stand on
        boundaries.py    where to cut forward into segments
        segments.py      the planner under a peak
        fill.py          what fits under a peak and is worth saving
        evict.py       lower peaks: what lies idle is let go and made again
        refine.py        what is free is filled up, and holes between plans are closed
        nested.py        boundaries inside of boundaries, when more than one forward may be recomputed
        unavoidable.py       what every plan has in memory, whatever it saves
        bound.py         seconds that no plan under a peak can beat, proven
        cp_sat_model.py what the oracle does not know, and what has to hold
        exact.py         the oracle: the fastest plan under a peak, for small graphs
      frontier.py        the ladder of plans between floor and ceiling; a budget -> a plan
    compiler/            touches torch
      _torch.py          torch's private modules, and how they differ between versions
      size_hints.py           sizes as numbers
      device.py        the device and torch's settings
      compile_context.py       what is compiled now, and which modules run
      source_hash.py         a hash of what a plan depends on
      sample_call.py           an op's call, made with arguments like its own
      allocator_trace.py     every allocation and release of a span of code, in order
      workspace.py         the memory that calls of libraries take inside themselves, measured
      traits.py             what kind an op is, what it reads and overwrites
      dealias_subgraph_outputs.py          results of a region's body that are its arguments
      subgraph_workspace.py          bytes that regions and branches take inside themselves
      call_count.py           how often a step calls what is being compiled
      node_info.py           what one fx node says of itself
      clone_mutated_inputs.py    inputs that forward overwrites
      joint_graph.py         joint GraphModule -> JointGraph
      discrete_ops.py       what forward has chosen is not chosen again
      annotations.py           budgets of regions; values to offload
      realize_op.py         an op that makes Inductor write its argument
      emit.py            Plan -> forward and backward GraphModule
      buffer_liveness.py           the bytes alive while Inductor's ops run in our order
      fusion_gate.py          Inductor merges kernels only where that does not raise the peak
      scheduler_pass.py           Inductor runs ops in our order
      wrapper_memory.py          the bytes alive, line by line of what Inductor writes
      dry_run.py         the exact peak of both graphs, before any code is generated
      select_plan.py           a rung, carried out: the two modules and their exact peak
      auto_budget.py     the budget "auto": what is free on the device
      measured_cost.py           the seconds of ops, measured
      default_partition.py   what torch's own partitioner would save, to compare with
      partitioner.py     capture, plan, emit: what Inductor calls
      plan_cache.py            what was planned, for processes that take the compiled graph from the cache
      step_warnings.py           what is watched while compiled steps run: sizes over budget, measured bytes
      backend.py         the backends, and enable()
      plan_only.py       a model's plans without compiling it
    report/              tells; no torch
      summary.py         one planned graph in one line; why a budget cannot be reached
      measurement.py     a strategy by name, and what one measurement found
      comparison.py      measurements in a table
      speed.py           a page of them: who is faster at the same peak
      pictures.py        measurements in pictures
      occupancy.py       who takes the memory at each step: saved, recomputed, gradients, outputs, temporaries
      reasons.py           what became of each value, and why
      layers.py          totals per module of the model
      report.py          Report: all there is to tell about one planned graph
      text.py            for a terminal
      trace.py           for Perfetto and chrome://tracing
      page.py            one HTML page that works offline (its parts are in assets/)
      files.py           all of these in a directory
    lab/                 measures
      networks.py        models in plain torch
      transformers_zoo.py             models of transformers, from their configurations
      catalog.py         which there are, and in which sizes
      build.py          a model, its step, and its blocks
      memory_and_time.py         peak bytes, exactly, and seconds of a step
      flops.py           FLOPs of a step, counted exactly
      check_peak.py           a training run measures its own first steps
      calibrate.py       what this machine sustains, for the cost model
      demo.py            with and without a budget, side by side
      malloc.py            freed memory stays with the process
      trial.py           one strategy on one model, in this process
      preload.py        what all processes of the next import
      worker.py          the same in a process of its own
      store.py           measurements in a file
      duplicate_plans.py           strategies that come to one plan at the same time
      spec.py          what to measure of a model, and how
      session.py         strategies side by side on one model
      results.py         tables and pictures of what a store holds
      compare.py         the command that shows them
    commands/            one file each
      plan_file.py         plan a graph from a file, without torch
      explain.py         rematpass explain
      plan.py            rematpass plan
      run.py             rematpass run
      max_batch.py       rematpass max-batch
      calibrate.py       rematpass calibrate
    cli.py               the commands; loads torch inside them
    __main__.py          python -m rematpass

The public names below load what they need when they are first used: importing ``rematpass`` does not load torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rematpass.compiler.backend import enable, remat
    from rematpass.compiler.partitioner import plans
    from rematpass.config import Config
    from rematpass.core.graph import JointGraph
    from rematpass.core.schedule import Plan
    from rematpass.errors import BudgetInfeasible, ConfigError, RematError

    __version__: str

__all__ = [
    "BudgetInfeasible",
    "Config",
    "ConfigError",
    "JointGraph",
    "Plan",
    "RematError",
    "__version__",
    "enable",
    "plans",
    "remat",
]

_HOMES = {
    "remat": "rematpass.compiler.backend",
    "enable": "rematpass.compiler.backend",
    "plans": "rematpass.compiler.partitioner",
    "Config": "rematpass.config",
    "JointGraph": "rematpass.core.graph",
    "Plan": "rematpass.core.schedule",
    "RematError": "rematpass.errors",
    "ConfigError": "rematpass.errors",
    "BudgetInfeasible": "rematpass.errors",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rematpass")
    except PackageNotFoundError:
        return "0+uninstalled"  # run from a checkout that was never installed
