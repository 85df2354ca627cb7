import itertools
import operator

import pytest
import torch
from support.programs import PROGRAMS, afresh, captured, emitted, selective
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from rematpass.compiler.emit import POSITION
from rematpass.core.cost import estimate
from rematpass.core.frontier import SOLVERS
from rematpass.core.hardware import preset
from rematpass.core.liveness import plan_of
from rematpass.core.op import Kind, Side
from rematpass.core.schedule import Drop, Run
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify

aten = torch.ops.aten
afresh = pytest.fixture(autouse=True)(afresh)


def randn(*shape, grad=False):
    return torch.randn(*shape).requires_grad_(grad)


def of_program(name):
    program = PROGRAMS[name]
    model, arguments = program.make()
    with torch._dynamo.config.patch(**program.dynamo):
        return captured(model, *arguments, **program.compile)


def solved(found, solver):
    (plan,) = SOLVERS[solver](Problem(found.graph, estimate(found.graph, preset("cpu"))))
    return plan


def calls(module):
    """The nodes that run an op, without views and ``getitem``."""
    made = module.graph.nodes
    return [n for n in made if n.op == "call_function" and POSITION in n.meta and n.target is not operator.getitem]


def runs(steps):
    return [step for step in steps if isinstance(step, Run)]


def by_name(graph, *names):
    ids = {op.name: op.id for op in graph.ops}
    return [ids[name] for name in names]


@pytest.mark.parametrize("solver", ["save_all", "recompute_all", "chen_sqrt"])
@pytest.mark.parametrize(
    "name",
    ["embedding_tied_to_the_head", "views_of_all_sorts", "attention_dropout", "checkpoint_regions", "symbolic_sizes"],
)
def test_the_modules_run_what_the_plan_runs_in_its_order(name, solver):
    found = of_program(name)
    plan = solved(found, solver)
    for module, steps in zip(emitted(found, plan), (plan.fwd, plan.bwd), strict=True):
        made = calls(module)
        assert [n.target for n in made] == [found.op_node[run.op].target for run in runs(steps)]
        assert [steps[n.meta[POSITION]] for n in made] == runs(steps)


def two_readers_of_one_chain():
    """sin -> exp, read at the beginning and at the end of backward."""

    def forward(x):
        h = torch.sin(x).exp()
        a = torch.tanh(h * h)
        return a * h

    return captured(forward, randn(3, 5, grad=True))


def recomputed_for_each_reader(found):
    """The plan that recomputes sin and exp before every op of backward that reads either."""
    graph = found.graph
    sin, exp = by_name(graph, "sin", "exp")
    chain = {*graph.ops[sin].writes, *graph.ops[exp].writes}
    saved = {v for v in graph.backward_reads if v not in chain} | set(graph.ops[sin].reads)
    backward = []
    for op in graph.ops:
        if graph.sides[op.id] is Side.FORWARD:
            continue
        if chain & set(op.reads):
            copy = 1 + sum(run.op == sin for run in backward)
            backward += [Run(sin, copy), Run(exp, copy)]
        backward.append(Run(op.id))
    forward = [Run(op.id) for op in graph.ops if graph.sides[op.id] is Side.FORWARD]
    plan = plan_of(graph, "by hand", saved, forward, backward)
    verify(graph, plan)
    return plan


def test_every_copy_is_a_separate_node_and_is_read_while_it_is_alive():
    found = two_readers_of_one_chain()
    plan = recomputed_for_each_reader(found)
    copies = len([run for run in plan.recomputed() if run.op == by_name(found.graph, "sin")[0]])
    assert copies >= 3
    _, bwd = emitted(found, plan)
    made = [n for n in bwd.graph.nodes if n.target is aten.exp.default]
    assert len(made) == len([n for n in bwd.graph.nodes if n.target is aten.sin.default]) == copies
    assert all(n.name.startswith(("exp_again", "sin_again")) for n in made + [m.args[0] for m in made])
    place = {n: i for i, n in enumerate(bwd.graph.nodes)}
    for earlier, later in itertools.pairwise(made):
        assert all(place[user] < place[later] for user in earlier.users)


def test_a_plan_with_many_copies_computes_eagers_gradient():
    found = two_readers_of_one_chain()
    fwd, bwd = emitted(found, recomputed_for_each_reader(found))
    x = randn(3, 5, grad=True)
    h = torch.sin(x).exp()
    (expected,) = torch.autograd.grad((torch.tanh(h * h) * h).sum(), x)
    out, *saved = fwd(x.detach())
    (grad,) = bwd(*saved, torch.ones_like(out))
    assert torch.equal(grad, expected)


def test_backward_begins_with_the_saved_values_and_the_tangents():
    found = of_program("mlp")
    plan = solved(found, "recompute_all")
    fwd, bwd = emitted(found, plan)
    handed_on = fwd.graph.find_nodes(op="output")[0].args[0][len(found.fwd_outputs) :]
    assert len(handed_on) == len(plan.saved)
    taken = [n.name for n in bwd.graph.find_nodes(op="placeholder")]
    assert taken == [*(n.name for n in handed_on), "tangents_1"]


def test_copies_carry_the_metadata_of_their_source_and_backwards_tag():
    class Block(nn.Module):
        def forward(self, x):
            return torch.sin(x).exp()

    found = captured(nn.Sequential(Block()), randn(7, 3, grad=True))
    _, bwd = emitted(found, solved(found, "recompute_all"))
    again = [n for n in bwd.graph.nodes if "_again" in n.name and n.target is not operator.getitem]
    assert [n.name for n in again] == ["sin_again", "exp_again"]
    for copy in again:
        original = next(n for n in found.op_node if copy.name.startswith(f"{n.name}_again"))
        assert copy.meta["stack_trace"] == original.meta["stack_trace"]
        assert copy.meta["nn_module_stack"] == original.meta["nn_module_stack"]
        assert copy.meta["partitioner_tag"] == "is_backward"
        assert "partitioner_tag" not in original.meta or "backward" not in original.meta["partitioner_tag"]


def test_marks_are_removed_from_nodes_that_obey_them():
    """Inductor would act on a node that still has one."""

    def region(x, w):
        return torch.sin(x @ w).exp()

    def forward(x, w):
        context = selective(CheckpointPolicy.MUST_RECOMPUTE, [aten.mm.default])
        return checkpoint(region, x, w, use_reentrant=False, context_fn=context)

    found = captured(forward, randn(7, 3, grad=True), randn(3, 5, grad=True))
    _, bwd = emitted(found, solved(found, "save_all"))
    assert {"mm_again", "sin_again"} <= {n.name for n in bwd.graph.nodes}
    assert not [n for n in bwd.graph.nodes if "recompute" in n.meta]


def test_backward_draws_no_random_numbers():
    for name in ("noise_of_every_sort", "attention_dropout"):
        found = of_program(name)
        drawn = {found.op_node[op.id].target for op in found.graph.ops if op.kind is Kind.RANDOM}
        fwd, bwd = emitted(found, solved(found, "recompute_all"))
        assert drawn <= {n.target for n in fwd.graph.nodes}
        assert not drawn & {n.target for n in bwd.graph.nodes}


def test_an_overwritten_argument_is_copied_only_if_backward_needs_its_old_version():
    def sine(function):
        buffer = torch.ones(5)

        def forward(x):
            y = torch.sin(x * function(buffer))
            with torch.no_grad():
                buffer.add_(1)
            return y

        return captured(forward, randn(3, 5, grad=True))

    found = sine(lambda b: torch.sin(b))
    fwd, _ = emitted(found, solved(found, "save_all"))
    assert not fwd.graph.find_nodes(op="call_function", target=aten.clone.default)
    assert not [n for n in fwd.graph.nodes if "clone" in n.name]

    found = sine(lambda b: torch.sin(b.expand(3, 5)))  # more bytes than the buffer
    fwd, bwd = emitted(found, solved(found, "recompute_all"))
    (clone,) = fwd.graph.find_nodes(op="call_function", target=aten.clone.default)
    assert clone in fwd.graph.find_nodes(op="output")[0].args[0]
    assert clone.name in [n.name for n in bwd.graph.find_nodes(op="placeholder")]


def test_an_op_with_several_results_runs_again_once_for_all_of_them():
    def forward(x):
        best, index = torch.topk(torch.sin(x), 3)
        return (best.exp() * index).tanh()

    found = captured(forward, randn(7, 5, grad=True))
    _, bwd = emitted(found, solved(found, "recompute_all"))
    (again,) = bwd.graph.find_nodes(op="call_function", target=aten.topk.default)
    assert sorted(n.args[1] for n in again.users) == [0, 1]


def test_a_result_without_a_node_can_be_dropped():
    def forward(x):
        return torch.topk(torch.sin(x), 3)[1] * x.exp().sum()

    found = captured(forward, randn(7, 5, grad=True))
    plan = solved(found, "save_all")
    (unnamed,) = [v for v, node in enumerate(found.value_node) if node is None]
    assert Drop(unnamed) in plan.fwd
    emitted(found, plan)


def test_a_view_is_replayed_once_for_each_copy_of_what_it_views():
    def forward(x):
        h = torch.sin(x).t()
        return h.exp() * h.sigmoid() * h.tanh()

    found = captured(forward, randn(3, 5, grad=True))
    _, bwd = emitted(found, solved(found, "recompute_all"))
    (sine,) = bwd.graph.find_nodes(op="call_function", target=aten.sin.default)
    assert [n.target for n in sine.users].count(aten.t.default) == 1


def test_gradients_that_are_not_requested_stay_none():
    found = captured(lambda x, y: torch.sin(x) * y, randn(3, grad=True), randn(3))
    _, bwd = emitted(found, solved(found, "save_all"))
    assert [n is None for n in bwd.graph.find_nodes(op="output")[0].args[0]] == [False, True]
