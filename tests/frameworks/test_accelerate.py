"""accelerate: gradients of two accumulated batches, with a compiled model and under ``enable``."""

import pytest
import torch
from small import assert_as_planned, close, gradients, llama, peak_of, tokens
from support.programs import afresh

import rematpass

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.frameworks
afresh = pytest.fixture(autouse=True)(afresh)


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def trained(model, **more):
    """The gradients after two batches, and each batch's peak, in the second of two rounds; the first one compiles."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, **more)
    loader = torch.utils.data.DataLoader(tokens(8), batch_size=4)
    prepared, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters()), loader)
    for _ in range(2):
        optimizer.zero_grad()
        peaks = []
        for batch in loader:
            with peak_of() as found, accelerator.accumulate(prepared):
                accelerator.backward(prepared(**batch).loss)
            peaks += found
    return gradients(model), peaks


@pytest.mark.parametrize("how", ["model.compile", "enable"])
def test_gradients_equal_eager_modes_within_the_planned_bytes(how):
    expected, eager_peaks = trained(llama())
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    model = llama()
    if how == "enable":
        with rematpass.enable(memory_budget=0, strict=True):
            seen, peaks = trained(model, dynamo_backend="inductor")
    else:
        model.compile(backend="remat", options={"memory_budget": 0, "strict": True})
        seen, peaks = trained(model)
    close(seen, expected)
    (summary,) = rematpass.plans()
    assert summary.exact
    for peak, by_eager in zip(peaks, eager_peaks, strict=True):
        assert_as_planned(peak, summary.peak_without_outputs)
        assert peak < 0.8 * by_eager
