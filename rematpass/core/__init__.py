"""The planner: decides what is saved, what is recomputed, and when. Never imports torch.

The words of the core:

=================  =====================================================================================================
value, copy        a storage with all its views; one computation of it (copy 0 is the first)
step               a ``Run`` of an op or a ``Drop`` of a copy; a ``Plan`` is the steps of forward and of backward
position           the index of a run in a plan, forward's first; a ``Timeline`` gives the live bytes at each position
moment             a position on the ``TimeAxis``, which is the same for all plans: it counts no recomputations
live interval      the positions from which to which a copy takes bytes
virtual, realized  computed inside the kernels that read it, without memory; written to memory on purpose
peak region        neighbouring positions whose live bytes are above a target
rung, ladder       a plan with its timeline; all rungs that no other one beats, from the ceiling to the floor
gap                the distance from a plan's seconds to the proven bound; a gap in the ladder: two rungs far apart
=================  =====================================================================================================
"""
