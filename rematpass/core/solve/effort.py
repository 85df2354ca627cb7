"""How much work the solvers do: every tuning constant, in one place.

More effort finds a lower peak or fewer seconds at the price of planning time; it never changes what is correct. A
``Problem`` carries an ``Effort``, and solvers read it from there. Constants that only keep arithmetic exact (the
integer scaling of a max-flow, tolerances for rounding) stay beside the code that they protect.

"Simulations" are the unit of planning time: building a plan and simulating it takes time in proportion to the ops.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Counts, ratios and tolerances of the search; the defaults plan 2,500 ops in seconds."""

    # All solvers (problem.py).

    # Ops up to which a graph gets every trial; beyond that, trials fall as ops rise, so planning stays near-linear.
    full_effort_ops: int = 2500
    # Materializations kept for plans that a search may ask for again: memory of the planner against recomputing them.
    kept_materializations: int = 32

    # The ladder (ladder.py).

    # Plans on the parametric cut, each one max-flow: more rungs between "save all" and "recompute all" to start from.
    mincut_vertices: int = 24
    # Their minimum, however large the graph.
    mincut_vertices_at_least: int = 3
    # Ratio of the highest start's peak to the lowest start's, above which a second, coarser descent begins at the
    # highest: the time of one more descent, for a floor that small steps do not reach.
    coarse_descent_ratio: float = 1.25
    # Limits between floor and ceiling under which the fastest plan is filled up; each costs one or more simulations.
    fill_limits: int = 16
    # Their minimum, however large the graph.
    fill_limits_at_least: int = 8
    # Gaps in the ladder that are searched for a plan in between; each costs a few simulations.
    ladder_gaps: int = 24

    # Segments (segmentation/).

    # Limits between the lowest reachable peak and the ceiling for which boundaries are chosen; each costs two plans.
    segment_limits: int = 12
    # Levels of saving per segment, at most; each costs one max-flow for all segments together.
    segment_levels: int = 8
    # Candidates for boundaries, at most: the choice takes time in proportion to their square times the ops.
    boundary_candidates: int = 160
    # Parts of the ceiling to one of which bisection finds the lowest limit with boundaries: 8 rounds.
    boundary_precision: int = 256
    # Ratio of the largest value's bytes to a value's, above which the value does not delay backward's entry into an
    # earlier segment: a scale or a mask that is read to the end must not hold up all segments.
    negligible_value: int = 1000
    # Depth of nested boundaries, at most, in forwards of recomputation: beyond it a chain's peak hardly falls.
    nested_depth: int = 8

    # Eviction (local_search/evict.py).

    # A descent aims this share below the current peak: smaller steps give more rungs and take more simulations.
    descent_step: float = 0.04
    # Share of the peak (or of the seconds) below which progress does not count, and a descent goes no finer.
    least_progress: float = 0.002
    # A trial counts as progress if the bytes above the target fall below this share of what they were.
    excess_kept: float = 0.98
    # Simulations of one descent: a lower floor against planning time.
    descent_trials: int = 80
    # Their minimum, however large the graph.
    descent_trials_at_least: int = 4
    # Simulations in a row without progress that end a search.
    trials_without_progress: int = 24
    # Simulations of one stride into a gap in the ladder.
    stride_trials: int = 3
    # Rounds of saving what fits after each step down.
    fill_rounds: int = 3

    # Refinement (local_search/refine.py).

    # Multiples of a gap's middle up to which a plan may lie that is brought down into the gap: one start slightly above
    # and one far above; large graphs get only the first.
    gap_reaches: tuple[float, ...] = (1.1, 2.0)
    # Ratio of two neighbouring peaks below which no other plan is sought between them.
    narrowest_gap: float = 1.004
    # Share of a step's seconds, averaged over all limits, that closing a gap has to promise to be searched.
    least_gap_gain: float = 4e-4

    # The lower bound (bound.py).

    # Cuts added for one peak, at most; each is one max-flow and may raise the bound.
    bound_cuts: int = 40
    # Share of a step's seconds: the bound is tight enough when it is this close to the best mix of cuts.
    bound_tolerance: float = 1e-4
    # Moments whose memory limit joins the linear program at a time: fewer solves of it against a larger program.
    bound_moments: int = 6
    # The fullest moments among which these are chosen.
    bound_moments_scanned: int = 240
    # Moments that join together lie further apart than this, in moments: neighbours have nearly the same limit.
    bound_moment_spacing: int = 3

    # The oracle (exact.py).

    # CP-SAT's deterministic time, about one second per unit: optimality proven against time.
    exact_deterministic_time: float = 60.0


DEFAULT_EFFORT = Effort()
