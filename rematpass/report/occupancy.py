"""What takes the memory: the role of every live interval of a timeline, and the bytes of each role at every position.

The bytes of all roles add up to the timeline's bytes at each position. If an op overwrites an argument in place, the
timeline counts those bytes once and the intervals count them twice; the difference is subtracted from the values that
die there. If the timeline counts more than its intervals, such as a kernel's workspace, the difference is added to the
temporaries. What other calls of the same step have saved is constant over all positions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum

from rematpass.core.graph import JointGraph
from rematpass.core.schedule import Plan
from rematpass.core.simulate import LiveInterval, Timeline


class Role(str, Enum):
    """Why a live interval exists, in the order in which pictures stack them."""

    OTHERS = "others"  # saved by other calls of the same step
    SAVED = "saved"  # saved by forward for backward
    RECOMPUTED = "recomputed"  # created again by backward
    GRADIENTS = "gradients"  # returned by backward
    OUTPUTS = "outputs"  # returned by forward
    TEMPORARIES = "temporaries"  # everything else, including intermediate gradients


ROLES = tuple(Role)
_FIRST_TO_GIVE_WAY = tuple(reversed(ROLES))


@dataclass(frozen=True)
class Occupant:
    """A live interval and its role: ``nbytes`` from position ``born`` to position ``end``, both inclusive."""

    value: int
    copy: int
    role: Role
    nbytes: int
    born: int
    end: int


@dataclass(frozen=True)
class Occupancy:
    """``by_role[k][i]``: the bytes of ``ROLES[k]`` while run ``i`` of the timeline runs."""

    occupants: tuple[Occupant, ...]
    by_role: tuple[tuple[int, ...], ...]

    def at(self, position: int) -> list[Occupant]:
        """The occupants that are alive while run ``position`` runs, largest first."""
        alive = [o for o in self.occupants if o.born <= position <= o.end]
        return sorted(alive, key=lambda o: (-o.nbytes, o.value, o.copy))


def occupancy(graph: JointGraph, plan: Plan, timeline: Timeline) -> Occupancy:
    """Assign a role to each live interval of ``timeline``, the timeline of ``plan``."""
    saved, gradients, outputs = set(plan.saved), set(graph.bwd_outputs), set(graph.fwd_outputs)

    def role(interval: LiveInterval) -> Role:
        in_backward = interval.born >= timeline.first_backward
        if interval.copy:
            return Role.RECOMPUTED
        if in_backward:
            return Role.GRADIENTS if interval.value in gradients else Role.TEMPORARIES
        if interval.value in saved:
            return Role.SAVED
        return Role.OUTPUTS if interval.value in outputs else Role.TEMPORARIES

    occupants = tuple(
        Occupant(t.value, t.copy, role(t), t.nbytes, t.born, t.end)
        for t in timeline.intervals
        if t.nbytes and t.born <= t.end
    )
    return Occupancy(occupants, _by_role(occupants, timeline))


def _by_role(occupants: tuple[Occupant, ...], timeline: Timeline) -> tuple[tuple[int, ...], ...]:
    steps = len(timeline.live)
    change = {role: [0] * (steps + 1) for role in ROLES}
    change[Role.OTHERS][0] = timeline.nbytes_of_others
    dying = {role: [0] * steps for role in ROLES}
    for o in occupants:
        change[o.role][o.born] += o.nbytes
        change[o.role][o.end + 1] -= o.nbytes
        dying[o.role][o.end] += o.nbytes
    levels = {role: list(itertools.accumulate(changes))[:steps] for role, changes in change.items()}
    for position, live in enumerate(timeline.live):
        excess = sum(level[position] for level in levels.values()) - live
        if excess < 0:
            levels[Role.TEMPORARIES][position] -= excess
        for role in _FIRST_TO_GIVE_WAY:  # first from values that die here, then from any
            taken = min(max(excess, 0), dying[role][position])
            levels[role][position] -= taken
            excess -= taken
        for role in _FIRST_TO_GIVE_WAY:
            taken = min(max(excess, 0), levels[role][position])
            levels[role][position] -= taken
            excess -= taken
    return tuple(tuple(levels[role]) for role in ROLES)
