"""C++ functions compiled several at a time: the same results, fewer runs of the compiler."""

import re

import pytest
import torch

from rematpass.compiler import _torch
from rematpass.compiler._torch import inductor_config
from rematpass.compiler.inductor import kernel_batches
from rematpass.compiler.inductor.kernel_batches import KernelBatches

SOURCE = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C"  void  kernel(const float* in_ptr0, float* out_ptr0, const int64_t ks0)
{{
    for (int64_t x0 = 0; x0 < ks0; x0 += 1)
        out_ptr0[x0] = in_ptr0[x0] + {};
}}
"""
ARGUMENTS = ["const float*", "float*", "const int64_t"]


class Single:
    """In the place of Inductor's AsyncCompile: compiles one function at a time, in this process."""

    def __init__(self):
        self.alone, self.waited = 0, False

    def cpp_pybinding(self, argtypes, source):
        self.alone += 1
        return _torch.CppPythonBindingsCodeCache.load_pybinding(argtypes, source)

    def wait(self, scope):
        self.waited = True


@pytest.fixture
def runs(monkeypatch):
    """How often sources are given to the compiler."""
    given = []
    cache = _torch.CppPythonBindingsCodeCache
    load = cache.load_pybinding_async

    def counted(argtypes, source, *args, **kwargs):
        given.append(source)
        return load(argtypes, source, *args, **kwargs)

    monkeypatch.setattr(cache, "load_pybinding_async", counted)
    monkeypatch.setattr(_torch, "compile_threads", lambda: 1)
    return given


def compiled(sources):
    batches = KernelBatches(Single())
    scope = {f"f{i}": batches.cpp_pybinding(ARGUMENTS, source) for i, source in enumerate(sources)}
    batches.wait(scope)
    assert batches.waited
    return batches.alone, scope


def result_of(function):
    given, result = torch.arange(3.0), torch.empty(3)
    function(given, result, 3)
    return (result - given).tolist()


def test_functions_of_a_batch_are_compiled_at_once_and_compute_their_own_results(runs):
    alone, scope = compiled([SOURCE.format(i) for i in range(3)])
    assert [result_of(scope[f"f{i}"]) for i in range(3)] == [[i] * 3 for i in range(3)]
    assert (len(runs), alone) == (1, 0)


def test_a_function_that_expects_other_arguments_raises(runs):
    _, scope = compiled([SOURCE.format(i) for i in range(2)])
    for function in scope.values():
        with pytest.raises(RuntimeError, match="requires 3 args"):
            function(torch.empty(3))


def test_a_source_with_helper_functions_is_compiled_alone(runs):
    helper = 'extern "C" void kernel'
    template = SOURCE.format("helper()").replace(helper.replace(" void ", "  void  "), "", 1)
    template = template.replace(
        "(const float*", f"static inline int helper() {{ return 7; }}\n{helper}(const float*", 1
    )
    alone, scope = compiled([template, SOURCE.format(1), SOURCE.format(2)])
    assert alone == 1
    assert result_of(scope["f0"]) == [7] * 3


def test_functions_of_a_batch_that_fails_are_compiled_alone(runs, monkeypatch):
    monkeypatch.setattr(kernel_batches, "source_of", lambda batch: "no C++")
    alone, scope = compiled([SOURCE.format(i) for i in range(2)])
    assert alone == 2
    assert result_of(scope["f1"]) == [1] * 3


def test_a_planned_model_has_the_gradients_of_unbatched_kernels(runs, monkeypatch):
    torch.manual_seed(0)
    widths = [(width, width + 8) for width in (32, 40, 48)]
    layers = [torch.nn.Sequential(torch.nn.Linear(*w), torch.nn.LayerNorm(w[1]), torch.nn.GELU()) for w in widths]
    model, x = torch.nn.Sequential(*layers), torch.randn(4096, 32)

    def gradients():
        torch._dynamo.reset()
        runs.clear()
        model.zero_grad()
        with inductor_config.patch(force_disable_caches=True):
            torch.compile(model, backend="remat", options={"memory_budget": 0, "strict": 1})(x).sum().backward()
        return len(runs), [p.grad.clone() for p in model.parameters()]

    together, expected = gradients()
    monkeypatch.setattr(kernel_batches, "_FORM", re.compile("(?!)"))
    one_by_one, found = gradients()
    assert (together, one_by_one) == (2, 12)  # a batch for each graph
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
