"""Lightning: the network inside a LightningModule is compiled, since ``self.log`` cannot be."""

import pytest
import torch
from small import assert_as_planned, close, llama, peak_of, tokens, weights
from support.programs import afresh

import rematpass

lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.frameworks
afresh = pytest.fixture(autouse=True)(afresh)


class Module(lightning.LightningModule):
    """Records the peak of each batch: forward, backward and the step of a stateless optimizer."""

    def __init__(self):
        super().__init__()
        self.model = llama()
        self.peaks = []

    def training_step(self, batch, number):
        loss = self.model(**batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, foreach=False)

    def on_train_batch_start(self, batch, number):
        self.span = peak_of()
        self.found = self.span.__enter__()

    def on_train_batch_end(self, outputs, batch, number):
        self.span.__exit__(None, None, None)
        self.peaks += self.found


def trained(path, **options):
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=3, logger=False, enable_checkpointing=False, default_root_dir=path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    if options:
        module.model.compile(backend="remat", options=options)
    trainer.fit(module, torch.utils.data.DataLoader(tokens(12), batch_size=4))
    return module.peaks, weights(module)


def test_weights_equal_eager_modes_within_the_planned_bytes(tmp_path):
    eager_peaks, expected = trained(tmp_path)
    peaks, seen = trained(tmp_path, memory_budget=0, strict=True)
    close(seen, expected, rtol=1e-3)
    (summary,) = rematpass.plans()
    assert summary.exact
    for peak in peaks[1:]:
        assert_as_planned(peak, summary.peak_without_outputs)
        assert peak < 0.8 * min(eager_peaks)
