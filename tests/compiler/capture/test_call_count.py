"""The number of calls of a graph in a step is found from its callers and affects what the graph saves."""

import functools
import weakref

import pytest
import torch
from support.programs import afresh
from torch import nn
from torch.utils.checkpoint import checkpoint

from rematpass.compiler.planned import listening, plans, records
from rematpass.core.frontier import least_budget
from rematpass.core.op import Origin
from rematpass.lab.measure.memory_and_time import measure_memory, run_step
from rematpass.units import format_bytes

afresh = pytest.fixture(autouse=True)(afresh)
BACKEND = "remat_aot_eager"
BLOCKS, WIDTH, ROWS = 5, 64, 256


class Block(nn.Module):
    def __init__(self, width=4 * WIDTH):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)

    def forward(self, x):
        return x + self.down(torch.tanh(nn.functional.gelu(self.up(x))))


class Model(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for width in widths)
        self.between = lambda x: x

    def forward(self, x):
        for block in self.blocks:
            x = self.between(block(x))
        return x


def alike():
    torch.manual_seed(0)
    return Model(*[4 * WIDTH] * BLOCKS)


def calls(model):
    """The calls per step of each graph that one step plans."""
    planned, x = [], torch.randn(ROWS, WIDTH, requires_grad=True)
    with listening(planned.append):
        model(x).sum().backward()
    return [record.graph.calls for record in planned]


def test_blocks_that_are_compiled_one_by_one_are_counted():
    model = alike()
    for block in model.blocks:
        block.compile(backend=BACKEND)
    assert calls(model) == [BLOCKS]


def test_blocks_in_a_wrapper_of_their_own_are_counted():
    model = alike()
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend=BACKEND)
    assert calls(nn.Sequential(model)) == [BLOCKS]


def test_blocks_whose_forward_is_compiled_are_counted():
    model = alike()
    for block in model.blocks:
        block.forward = torch.compile(block.forward, backend=BACKEND)
    assert calls(model) == [BLOCKS]


def test_only_compiled_blocks_with_the_same_parameters_are_counted():
    model = Model(4 * WIDTH, 3 * WIDTH, 4 * WIDTH, 4 * WIDTH)
    for block in model.blocks[:3]:
        block.compile(backend=BACKEND)
    assert calls(model) == [2, 1]


def test_a_model_that_is_compiled_as_a_whole_is_called_once():
    model = alike()
    model.compile(backend=BACKEND)
    assert calls(model) == [1]
    plans(clear=True)
    torch._dynamo.reset()
    assert calls(torch.compile(alike(), backend=BACKEND)) == [1]


def test_a_copy_of_the_model_that_is_not_compiled_is_not_counted():
    root = nn.ModuleDict({"mean": alike(), "model": torch.compile(alike(), backend=BACKEND)})
    root.forward = lambda x: root["model"](x)
    assert calls(root) == [1]


def test_a_block_inside_a_checkpoint_counts_once():
    """What a block in a checkpoint saves exists only during its own backward."""
    model = alike()
    for block in model.blocks:
        block.compile(backend=BACKEND, options={"memory_budget": 0.5})
    blocks = list(model.blocks)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    model.forward = lambda x: functools.reduce(lambda x, b: checkpoint(b, x, use_reentrant=False), blocks, x)
    model(x).sum().backward()
    assert [record.graph.calls for record in records()] == [1]


def test_a_module_that_cannot_be_inspected_does_not_abort_training():
    model = alike()
    for block in model.blocks:
        block.compile(backend=BACKEND)
    model.blocks[2].unused = nn.LazyLinear(3)  # its parameters have no shape yet
    assert calls(model)[0] == 1


def test_locals_of_callers_are_not_kept_alive():
    """In Python 3.12 and older, ``frame.f_locals`` keeps the locals alive until the frame ends."""
    model, x = alike(), torch.randn(ROWS, WIDTH, requires_grad=True)
    for block in model.blocks:
        block.compile(backend=BACKEND)
    batch = torch.randn(3)
    seen = weakref.ref(batch)
    model(x).sum().backward()
    del batch
    assert seen() is None


def test_a_function_outside_of_any_module_is_called_once():
    assert calls(torch.compile(lambda x: torch.tanh(x).sin(), backend=BACKEND)) == [1]


def test_the_option_calls_takes_precedence():
    model = alike()
    model.compile(backend=BACKEND, options={"calls": 7})
    assert calls(model) == [7]


def test_an_input_that_all_calls_share_is_counted_once():
    """A mask needs no gradient, so all blocks share it; what one block passes to the next is not shared."""
    compiled = torch.compile(lambda x, mask: torch.tanh(x * mask), backend=BACKEND, options={"calls": 3})
    compiled(torch.randn(ROWS, WIDTH, requires_grad=True), torch.ones(ROWS, WIDTH)).sum().backward()
    (record,) = records()
    own = [record.graph.values[v].nbytes_expr for v in record.graph.own_inputs]
    inputs = [v for v in record.graph.values if v.origin is Origin.INPUT]
    assert (len(own), len(inputs)) == (1, 2)
    kept = {v for v in record.plan.saved if record.graph.nbytes_of_others[v]}
    assert record.rung.timeline.nbytes_of_others == 2 * 4 * ROWS * WIDTH * len(kept)
    assert record.rung.timeline.nbytes_of_others > 0


def stepped(model, x, **how):
    """The gradients of a step, and the memory of a later one."""
    for block in model.blocks:
        block.compile(**how)
    run_step(lambda: model(x).sum(), list(model.parameters()))
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return found, measure_memory(lambda: model(x).sum(), list(model.parameters()))


def test_a_lower_budget_takes_less_memory_when_blocks_are_compiled_one_by_one():
    """If planned for one call only, a quarter takes more than a half, and 0 four times as much as checkpoints."""
    x = torch.randn(ROWS, WIDTH)
    torch.manual_seed(0)
    whole = Model(*[4 * WIDTH] * 12)
    expected, _ = stepped(whole, x, disable=True)
    peaks, planned = [], []
    for budget in (1, 0.5, 0.25, 0):
        torch.manual_seed(0)
        model = Model(*[4 * WIDTH] * 12)
        torch._dynamo.reset()
        plans(clear=True)
        found, memory = stepped(model, x, backend=BACKEND, options={"memory_budget": budget})
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        peaks.append(memory.peak)
        planned.append(plans()[0].planned_peak)
        # The first block's input needs no gradient; what one block passes to the next is in neither plan.
        assert memory.saved <= planned[-1] + 4 * ROWS * WIDTH
    assert peaks == sorted(peaks, reverse=True)
    assert planned == sorted(planned, reverse=True)
    activation, hidden = 4 * ROWS * WIDTH, 4 * ROWS * 4 * WIDTH
    assert peaks[-1] - memory.gradients <= 13 * activation + 4 * hidden  # what checkpoints save, and all of one block


def looped(caplog, times, **options):
    """The warnings of three steps in which a loop calls a compiled function, after calls without a backward."""
    compiled = torch.compile(lambda x: torch.tanh(x).exp().sin(), backend=BACKEND, options=options)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    for _ in range(5):
        compiled(x)
    for _ in range(3):
        y = x
        for _ in range(times):
            y = compiled(y)
        y.sum().backward()
    return [r.getMessage() for r in caplog.records if "times before its backward" in r.getMessage()]


def test_calls_that_cannot_be_counted_are_warned_of_once(caplog):
    (message,) = looped(caplog, 4, memory_budget=0)
    assert message.startswith("graph 0/0 was called 4 times before its backward, and is planned for 1: ")
    assert "The option calls=4" in message


@pytest.mark.parametrize(
    ("times", "options"), [(4, {"memory_budget": 0, "calls": 4}), (1, {"memory_budget": 0}), (4, {"memory_budget": 1})]
)
def test_no_warning_for_as_many_calls_as_planned_or_without_a_budget(times, options, caplog):
    assert looped(caplog, times, **options) == []


def test_each_call_is_checked_against_the_plan_of_one(caplog):
    model = alike()
    for block in model.blocks:
        block.compile(backend=BACKEND, options={"memory_budget": 0.5, "check": 1})
    with caplog.at_level("INFO", "rematpass"):
        for _ in range(2):
            model(torch.randn(ROWS, WIDTH, requires_grad=True)).sum().backward()
    told = [r for r in caplog.records if "measured step" in r.getMessage()]
    assert [r.levelname for r in told] == ["INFO"] * 3
    (plan,) = plans()
    assert f"within the {format_bytes(plan.planned_peak - plan.nbytes_of_others)} planned" in told[0].getMessage()


class Scaled(nn.Module):
    """Blocks that all get the same tensor, which needs a gradient and is computed once before them."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        @torch.compiler.nested_compile_region
        def forward(self, x, scale):
            return x + torch.tanh(self.linear(x) * scale)

    def __init__(self):
        super().__init__()
        self.first, self.blocks = nn.Linear(WIDTH, WIDTH), nn.ModuleList(self.One() for _ in range(3))
        self.scale = nn.Parameter(torch.ones(ROWS, WIDTH))

    def forward(self, x):
        x, scale = self.first(x), torch.sigmoid(self.scale)
        for block in self.blocks:
            x = block(x, scale)
        return x


def test_an_argument_that_all_calls_of_a_region_share_is_not_an_own_input():
    torch.compile(Scaled(), backend=BACKEND)(torch.randn(ROWS, WIDTH)).sum().backward()
    region, _ = records()
    inputs = [v for v in region.graph.values if v.origin is Origin.INPUT]
    assert (region.graph.calls, len(inputs), len(region.graph.own_inputs)) == (3, 2, 1)


class Region(Block):
    @torch.compiler.nested_compile_region
    def forward(self, x):
        return super().forward(x)


def of_regions(budget):
    """A model of four regions, one step of it measured, and the records of its graphs."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    plans(clear=True)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Region() for _ in range(4)))
    compiled = torch.compile(model, backend=BACKEND, options={"memory_budget": budget, "strict": 1})
    x = torch.randn(ROWS, WIDTH)
    memory = measure_memory(lambda: compiled(x).sum(), list(model.parameters()))
    return memory.peak, records()


def test_regions_keep_a_budget_in_bytes():
    """The fastest plans of the regions alone exceed this budget."""
    fastest, (region, _) = of_regions(1)
    budget = least_budget(int(0.6 * fastest), "cpu")
    assert region.rung.timeline.nbytes_of_others + region.graph.nbytes.max() > budget
    measured, (region, whole) = of_regions(f"{budget}B")
    assert measured <= budget
    assert measured <= whole.summary.planned_peak + 8
    assert region.summary.recomputed_ops


def test_the_calls_of_a_region_are_read_from_the_graph_around_it():
    _, (region, whole) = of_regions(0)
    assert (region.graph.calls, whole.graph.calls) == (4, 1)
    weights = [v for v in region.graph.values if v.origin is Origin.STATIC]
    assert len(weights) == 4  # they exist before the step, so no call has its own
    assert len(region.graph.own_inputs) == 1
    assert region.rung.timeline.nbytes_of_others == 3 * 4 * ROWS * WIDTH  # each keeps its input, and nothing else
