"""transformers' Trainer rejects unknown backends: compile the model first, or use ``enable``."""

import pytest
import torch
from small import assert_as_planned, close, llama, peak_of, tokens, weights
from support.programs import afresh

import rematpass

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.frameworks
afresh = pytest.fixture(autouse=True)(afresh)


class Recorded(transformers.Trainer):
    """Records the peak of each forward and backward."""

    def training_step(self, *args, **kwargs):
        with peak_of() as found:
            loss = super().training_step(*args, **kwargs)
        self.peaks = [*getattr(self, "peaks", []), *found]
        return loss


def trained(path, model, **more):
    arguments = transformers.TrainingArguments(
        output_dir=str(path), max_steps=3, per_device_train_batch_size=4, optim="sgd", learning_rate=0.1,
        lr_scheduler_type="constant", use_cpu=True, seed=0, report_to=[], save_strategy="no", disable_tqdm=True, **more,
    )  # fmt: skip
    trainer = Recorded(model=model, args=arguments, train_dataset=tokens(12))
    trainer.train()
    return trainer.peaks, weights(model)


@pytest.mark.parametrize("how", ["model.compile", "enable", "outputs dropped"])
def test_weights_equal_eager_modes_within_the_planned_bytes(how, tmp_path):
    eager_peaks, expected = trained(tmp_path, llama())
    model = llama()
    if how == "enable":
        with rematpass.enable(memory_budget=0, strict=True):
            peaks, seen = trained(tmp_path, model, torch_compile=True)
    else:
        hold = how != "outputs dropped"
        model.compile(backend="remat", options={"memory_budget": 0, "strict": True, "hold_outputs": hold})
        peaks, seen = trained(tmp_path, model)
    close(seen, expected, rtol=1e-3)
    (summary,) = rematpass.plans()
    assert summary.exact
    # The first step compiles. The Trainer keeps only the loss, so the logits are freed before backward.
    for peak in peaks[1:]:
        assert_as_planned(peak, summary.planned_peak if how == "outputs dropped" else summary.peak_without_outputs)
        assert peak < 0.8 * min(eager_peaks)


def test_the_trainer_rejects_this_backend(tmp_path):
    """The reason for the guide's recipe; when this fails, the recipe can be simpler."""
    with pytest.raises(ValueError, match="REMAT"):
        trained(tmp_path, torch.nn.Linear(1, 1), torch_compile_backend="remat")
