"""FLOPs against a count by hand."""

import pytest
import torch

import rematpass
from rematpass.lab.measure.flops import Flops, compiled_flops, eager_flops
from rematpass.lab.measure.memory_and_time import run_step
from rematpass.lab.models.networks import chain


class TestFlops:
    def test_linear_layers_equal_a_count_by_hand(self):
        module = chain(layers=3, width=5, segments=3)
        x = torch.randn(7, 5)
        one = 2 * 7 * 5 * 5
        found = eager_flops(lambda: module(x), module.parameters())
        assert found == Flops(forward=3 * one, step=3 * one + (2 * 3 - 1) * one)

    def test_recomputed_regions_count_twice(self):
        module = chain(layers=3, width=5, segments=3)
        x = torch.randn(7, 5, requires_grad=True)

        def step() -> torch.Tensor:
            return torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)

        plain, again = (eager_flops(s, module.parameters()) for s in (lambda: module(x), step))
        assert again.step == plain.step + plain.forward

    @pytest.mark.slow
    def test_compiled_graphs_have_the_flops_of_eager_mode(self):
        module = chain(layers=2, width=5, segments=1)
        x = torch.randn(7, 5)
        eager = eager_flops(lambda: module(x), module.parameters())
        with compiled_flops() as counter:
            compiled = torch.compile(module)
            run_step(lambda: compiled(x), module.parameters())
        assert (counter.total, counter.graphs) == (eager.step, 2)

    def test_dry_runs_of_inductor_do_not_count(self):
        """A budget makes the planner run Inductor dry; the compiled graphs are eager's step and the recomputation."""
        module = chain(layers=4, width=5, segments=1)
        x = torch.randn(7, 5)
        eager = eager_flops(lambda: module(x), module.parameters())
        rematpass.plans(clear=True)  # plans of other tests may be listed
        with compiled_flops() as counter:
            compiled = torch.compile(module, backend="remat", options={"memory_budget": 0})
            run_step(lambda: compiled(x), module.parameters())
        (summary,) = rematpass.plans(clear=True)
        assert summary.exact
        assert (counter.total, counter.graphs) == (eager.step + summary.recomputed_flops, 2)

    def test_checkpointed_attention_with_a_random_state_counts(self):
        """Torch wraps attention in an op that saves the generator's state, and in one that restores it."""
        heads = torch.randn(1, 2, 16, 8, requires_grad=True)

        def attend(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x).sin().sum()

        def step() -> torch.Tensor:
            return torch.utils.checkpoint.checkpoint(attend, heads, use_reentrant=False)

        plain, again = (eager_flops(s, [heads]) for s in (lambda: attend(heads), step))
        assert again.step == plain.step + plain.forward > plain.step
        with compiled_flops() as counter:
            run_step(torch.compile(step), [heads])
        assert (counter.total, counter.graphs) == (again.step, 2)
