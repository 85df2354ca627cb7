"""The guide's examples for frameworks are run as written, on tiny models."""

import pytest
import torch
import torch._inductor.config
from small import llama, tokens
from support.documents import examples
from support.programs import afresh
from torch import nn

import rematpass

pytestmark = pytest.mark.frameworks
afresh = pytest.fixture(autouse=True)(afresh)
EXAMPLES = examples("frameworks")


def run(name, **given):
    """The names that the example leaves behind."""
    exec(EXAMPLES[name], given)
    return given


def train(model, **inputs):
    out = model(**inputs)
    (out.loss if hasattr(out, "loss") else out.square().sum()).backward()


def test_every_example_has_a_test():
    assert set(EXAMPLES) == {"trainer", "enable", "lightning", "peft", "blocks", "ranks"}


def test_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    found = run("trainer", model=llama(), Trainer=transformers.Trainer, arguments=arguments, dataset=tokens(8))
    found["trainer"].train()
    assert len(rematpass.plans()) == 1


def test_enable(tmp_path, monkeypatch):
    transformers, accelerate = pytest.importorskip("transformers"), pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    before = torch._inductor.config.custom_partitioner_fn
    with rematpass.enable(memory_budget=1):  # restores what the example sets
        found = run(
            "enable",
            rematpass=rematpass,
            TrainingArguments=transformers.TrainingArguments,
            Accelerator=accelerate.Accelerator,
        )
        assert found["arguments"].torch_compile_backend == "inductor"
        train(found["accelerator"].prepare(nn.Linear(3, 5)), input=torch.ones(7, 3))
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    assert torch._inductor.config.custom_partitioner_fn is before
    (summary,) = rematpass.plans()
    assert summary.budget_nbytes == 8 << 30


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Blocks()

        def training_step(self, batch, number):
            loss = self.model(batch).square().sum()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters())

    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.ones(7, 8), batch_size=7)
    run("lightning", trainer=trainer, module=Module(), loader=loader)
    assert len(rematpass.plans()) == 1


def test_peft():
    peft = pytest.importorskip("peft")
    found = run("peft", base=llama(), get_peft_model=peft.get_peft_model, LoraConfig=peft.LoraConfig)
    train(found["model"], **torch.utils.data.default_collate(tokens(4)))
    assert len(rematpass.plans()) == 1
    assert {n.split(".")[-3] for n, p in found["model"].named_parameters() if p.grad is not None} == {
        "lora_A",
        "lora_B",
    }


class Block(nn.Module):
    """A class of its own: ``compile`` of torch's own classes compiles nothing, with any backend."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(self.layer(x))


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_blocks():
    model = Blocks()
    run("blocks", model=model)
    train(model, x=torch.ones(7, 8, requires_grad=True))
    assert len(rematpass.plans()) == 1


def test_ranks(tmp_path):
    """On one rank, each half of the example in turn; test_ranks.py uses two ranks."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1)
    try:
        outside, inside = EXAMPLES["ranks"].split("\n\n")
        found = {"torch": torch, "model": Blocks(), "DistributedDataParallel": DistributedDataParallel}
        exec(outside, found)
        train(found["model"], x=torch.ones(7, 8, requires_grad=True))
        assert len(rematpass.plans(clear=True)) == 1
        torch._dynamo.reset()
        model = Blocks()
        exec(inside, {"model": model, "fully_shard": fully_shard})
        train(model, x=torch.ones(7, 8, requires_grad=True))
        assert len(rematpass.plans()) == 1
    finally:
        dist.destroy_process_group()
