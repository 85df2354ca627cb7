"""Train in less memory: a rematerialization backend for ``torch.compile``.

Usage::

    torch.compile(model, backend="remat", options={"memory_budget": "8GiB"})
    rematpass.enable(memory_budget="8GiB")          # from here on, every torch.compile with Inductor
    rematpass.plans()                               # what was planned in this process

    REMAT_MEMORY_BUDGET=8GiB python train.py        # the same for torch.compile(model, backend="remat") in train.py

In a terminal, ``rematpass guide`` explains budgets, frameworks, troubleshooting and limits, and ``rematpass --help``
lists the commands. Importing ``rematpass`` does not import torch: each public name is loaded on first use.

How it works: the backend takes the joint graph of forward and backward, decides for every value that backward needs
whether to save or recompute it, and hands both graphs to Inductor. Each step hands one type to the next::

    joint GraphModule --capture--> JointGraph --cost--> seconds --solve--> Plan --verify--> Plan --emit--> (fwd, bwd)
                                                                Plan --simulate--> Timeline --report--> text, JSON, HTML

The map lists all files in that order. A module may import what is listed above it in its own top-level directory, the
first four files, and the directories that its directory may use: ``report`` uses ``core``; ``compiler`` uses both;
``lab`` uses all three; ``commands`` use everything.

    errors.py                     every exception, one class per cause
    units.py                      "8GiB" <-> bytes, seconds, percent
    budget.py                     a memory budget: its forms, parsed
    config.py                     the settings; the only reader of the environment
    core/                         decides; never imports torch
      ragged.py                   rows of different lengths as arrays
      op.py                       Op and Value: one call, one storage
      sides.py                    where each op has to run: forward, backward, or either
      order.py                    the order of backward's ops
      graph_arrays.py             a joint graph as arrays over its ops and values
      graph.py                    JointGraph: forward and backward as ops and values
      sizes.py                    a joint graph at other sizes
      schedule.py                 Plan: Run and Drop, step by step
      hardware.py                 devices by name: FLOP/s, bytes/s, facts for the simulator
      cost.py                     op -> seconds
      liveness.py                 when each copy of a value is alive
      materialization.py          which copies take bytes when a fusing compiler runs a plan
      simulate.py                 JointGraph + Plan -> Timeline: live bytes at each step, the peak, seconds
      verify.py                   the judge: replays a schedule and rejects a wrong one
      solve/                      decides what to save and what to recompute
        effort.py                 how much work the solvers do: every tuning constant
        schedule_late.py          a set of saved values -> a Plan that recomputes as late as possible
        mincut.py                 the parametric minimum cut
        problem.py                the input and the signature that all solvers share
        state.py                  a plan as decisions, before it is scheduled
        baselines.py              save_all, recompute_all, chen_sqrt
        segmentation/             boundaries in forward, chosen on a timeline
          time_axis.py            the moments that bounds and prices refer to
          boundaries.py           where to cut forward into segments
          segments.py             the plans under a peak that segments give
          nested.py               boundaries inside segments, for max_recompute > 1
        local_search/             plans improved step by step
          fill.py                 what fits under a peak and is worth saving
          idle_copies.py          the idle copies of a plan, and the price of evicting each
          evict.py                lower peaks: idle copies are evicted and recomputed later
          refine.py               free bytes are used, and gaps in the ladder are closed
        ladder.py                 all plans worth simulating: the solvers, by name
        unavoidable.py            bytes that every plan holds, whatever it saves
        relaxation.py             the minimum cut under prices, and the linear program of prices
        bound.py                  seconds that no plan under a peak can beat, proven
        cp_sat_variables.py       the unknowns of the exact model
        cp_sat_model.py           the exact model: constraints and objective
        exact.py                  the oracle: the fastest plan under a peak, for small graphs
      frontier.py                 the ladder of plans between floor and ceiling; a budget selects one
    compiler/                     touches torch
      _torch/                     torch's private modules, and how they differ between versions
        version.py                the supported range of versions
        partitioning.py           around the decision of torch's own partitioner
        random_state.py           running an op again from the random state of its first run
        call_stack.py             what torch is doing now
        compiled_modules.py       how torch.compile changes modules
      source_hash.py              a hash of the sources that a plan depends on
      devices/                    one file per kind of device: the only place that knows how they differ
        allocator_trace.py        allocations and releases during a span of code, and the bytes alive
        peak_window.py            the peak of one call of a compiled graph
        base.py                   DeviceKind: the interface of a kind of device
        cpu.py                    the CPU
        cuda.py                   CUDA GPUs
        other.py                  any other device: planned for, but not measured
      ops/                        what is known of a single call
        copy_module.py            a copy of a graph module that passes may change
        size_hints.py             symbolic sizes as numbers
        node_info.py              what one fx node says about itself
        kinds.py                  the kind of an op, and whether it may run again: one table
        flops.py                  the FLOPs of a call
        sample_call.py            a call on sample arguments, outside of its graph
        workspace.py              bytes that library calls take inside themselves, measured
        library_calls.py          the calls that the compiler hands to a library
        traits.py                 what the planner has to know of a call
      graph_passes/               every rewrite of an fx graph, in the order in which they run
        eliminate_common_subexpressions.py  merges repeated computations, drops dead code
        force_saves.py            users' marks, and what must be saved in any case
        infer_subgraph_results.py  calls of subgraphs without a fake result
        dealias_subgraph_outputs.py  results of a subgraph that are its own arguments
        clone_mutated_inputs.py   inputs that forward overwrites
        step_facts.py             what the passes below know of the joint graph
        drop_stray_ops.py         ops that backward must not run
        thread_random_states.py   random states of regions
        flatten_convolution_inputs.py  saved inputs that Inductor would copy
        avoid_addmm.py            additions that would keep a product's operands alive
        offload.py                saved values that are moved to the CPU
        pipeline.py               the two lists of passes: over the joint graph, over forward and backward
      capture/                    joint graph in, JointGraph out
        compile_context.py        what is being compiled, and which modules run
        call_count.py             how often a step calls what is being compiled
        subgraph_workspace.py     bytes that subgraphs take inside themselves
        element_order.py          which arguments are read element by element, and in which order
        graph_reader.py           reads fx nodes one by one into ops and values
        joint_graph.py            joint GraphModule -> JointGraph
        functional.py             whether a graph reads what it has overwritten
        pure_ops.py               custom ops that the user declares to be pure
        discrete_ops.py           backward uses the decisions that forward made
        annotations.py            users' marks on regions
        measured_cost.py          the seconds of ops, measured
      inductor/                   everything that depends on how Inductor works
        settings.py               Inductor's settings, as far as plans and caches depend on them
        realize_op.py             an op that makes Inductor write its argument to memory
        buffer_liveness.py        the bytes alive while Inductor's ops run in our order
        fusion_gate.py            Inductor merges kernels only where that does not raise the peak
        kernel_batches.py         C++ functions compiled several at a time
        scheduler_pass.py         Inductor runs ops in our order
        extern_calls.py           the bytes inside of library calls, and the views that they return
        wrapper_memory.py         the bytes alive, line by line of Inductor's wrapper
        subgraph_lines.py         marks in the wrapper where the call of a subgraph begins and ends
        skip_codegen.py           schedules and wrapper lines without the code of kernels
        lowering.py               a graph, lowered and scheduled up to its wrapper lines
        without_trace.py          a dry run changes nothing in the process
        dry_run.py                the exact peak of both graphs, before any code is generated
      emit.py                     Plan -> the forward and the backward module
      default_partition.py        what torch's own partitioner would do: a rung of the ladder
      select_plan.py              a rung, emitted and rewritten, with its exact peak
      user_errors.py              errors that are never a reason to fall back, with short tracebacks
      planned.py                  records of what was planned; the log line, reports, listeners
      runtime/                    what runs beside a compiled step
        backward_node.py          the autograd node of a compiled backward
        check_peak.py             REMAT_CHECK: a training run measures its own first steps
        step_warnings.py          warns when a step's sizes or calls exceed its plan
      auto_budget.py              the budget "auto": what is free on the device
      planner.py                  a captured graph and a budget -> modules, and the record of the decision
      partitioner.py              capture, rewrite, plan, select, emit: what Inductor calls
      plan_cache.py               plans kept for processes that take the compiled graph from the cache
      backend.py                  the backends, and enable()
      plan_only.py                a model's plans without compiling it
    report/                       presents plans and measurements; never imports torch
      atomic.py                   files that are complete or absent
      summary.py                  one planned graph in one line; the message for an infeasible budget
      measurement.py              strategies by name, and the result of one measurement
      comparison.py               measurements as a table
      comparison_table.py         the same in a terminal of any width
      speed.py                    step times at equal peaks, as a Markdown page
      pictures.py                 measurements as pictures
      occupancy.py                what takes the memory at each step
      reasons.py                  what the plan does with each value, and why
      layers.py                   totals per module of the model
      report.py                   Report: all data on one planned graph
      text.py                     the report for a terminal
      trace.py                    the report for Perfetto and chrome://tracing
      page.py                     the report as one HTML page that works offline (its parts are in assets/)
      files.py                    all forms of the report in a directory
    lab/                          measures
      models/                     what is measured
        names.py                  what the catalog holds, by name; loads no torch
        networks.py               models in plain torch
        transformers_zoo.py       models of transformers, from their configurations
        catalog.py                how they are built, and their sizes
        build.py                  a model, its step, and its blocks
      measure/                    bytes, seconds and FLOPs of one step
        memory_and_time.py        peak bytes, exactly, and seconds
        flops.py                  FLOPs, counted exactly
        calibrate.py              what this machine sustains, for the cost model
        warm_up.py                a first compilation that is not measured
      demo.py                     with and without a budget, side by side
      benchmark/                  many strategies, a process for each
        malloc.py                 freed memory stays with the process
        job.py                    one strategy on one model, and the key of its measurement
        subject.py                the job's model and its eager step
        trial.py                  measures a job in this process
        preload.py                imports that all worker processes need
        worker.py                 measures a job in a process of its own
        store.py                  measurements in a file
        duplicate_plans.py        strategies that have the same plan at the same time
        spec.py                   what to measure of a model, and how
        known_plans.py            plans that have been measured
        step_times.py             step times in turns
        workers.py                the processes of a session and their files
        session.py                strategies side by side on one model
        results.py                tables and pictures of a store
      progress.py                 a bar, or a line for each strategy
      compare.py                  strategies side by side: measured and shown
    commands/                     one file each
      arguments.py                arguments that several commands share
      demo.py                     rematpass demo
      compare.py                  rematpass compare
      plan_file.py                plans a graph from a file, without torch
      explain.py                  rematpass explain
      plan.py                     rematpass plan
      run.py                      rematpass run
      max_batch.py                rematpass max-batch
      calibrate.py                rematpass calibrate
      guide.py                    rematpass guide
      env.py                      rematpass env
    cli.py                        the commands; loads torch inside them
    __main__.py                   python -m rematpass
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rematpass.compiler.backend import enable, remat
    from rematpass.compiler.planned import plans
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
    "plans": "rematpass.compiler.planned",
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
        return "0+uninstalled"  # in a checkout that is not installed
