"""A graph module, lowered and scheduled by Inductor up to the lines of its wrapper, without code generation.

The steps are those of Inductor's ``compile_fx``, whose functions have these names in torch 2.11 to 2.15.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import V, inductor_driver
from rematpass.compiler.inductor.skip_codegen import skip_kernel_code
from rematpass.compiler.inductor.subgraph_lines import mark_subgraphs


@contextlib.contextmanager
def lowered(module: fx.GraphModule, inputs: Sequence[Any], is_backward: bool, donated: Sequence[int]) -> Iterator[Any]:
    """Inductor's graph of ``module``, scheduled, with planned wrapper lines; the current graph inside the ``with``.

    ``donated``: the inputs that backward may overwrite.
    """
    inductor_driver.view_to_reshape(module)
    with torch.no_grad():
        fake_mode = inductor_driver.fake_tensor_prop(module, inputs)
    inductor_driver._recursive_record_original_output_strides(module)
    with contextlib.ExitStack() as stack:
        stack.enter_context(V.set_fake_mode(fake_mode))
        stack.enter_context(inductor_driver.get_cuda_device_context(module))
        inductor_driver._recursive_post_grad_passes(module, is_inference=False)
        stack.enter_context(inductor_driver.maybe_disable_comprehensive_padding(inputs))
        stack.enter_context(inductor_driver.maybe_disable_graph_partition(False, False))
        graph = _torch.inductor_graph.GraphLowering(
            module,
            example_inputs=inputs,
            shape_env=inductor_driver.shape_env_from_inputs(inputs),
            is_inference=False,
            is_backward=is_backward,
            inputs_to_check=(),
        )
        graph.bw_donated_idxs = list(donated) if is_backward else None
        stack.enter_context(V.set_graph_handler(graph))
        stack.enter_context(V.set_extern_kernel_nodes([]))
        graph.run(*inputs)
        _plan_lines(graph)
        yield graph


def _plan_lines(graph: Any) -> None:
    """Do what Inductor does to a lowered graph, which is the current one, until its wrapper lines are planned."""
    graph.init_wrapper_code()
    graph._update_scheduler()
    skip_kernel_code(graph.scheduler)
    mark_subgraphs(graph.wrapper_code, _plan_lines)
    graph.wrapper_code.push_codegened_graph(graph)
    graph.scheduler.codegen()
    graph.wrapper_code.run_wrapper_ir_passes(False)
