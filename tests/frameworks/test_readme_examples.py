"""README's examples for the frameworks are run as they stand there, on tiny models."""

import re
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from small import llama, tokens
from support.programs import afresh
from torch import nn

import rematpass

pytestmark = pytest.mark.frameworks
afresh = pytest.fixture(autouse=True)(afresh)
README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"<!-- frameworks: (\w+) -->\n```python\n(.*?)```", README, re.DOTALL))


def run(name, **given):
    """The names that the example leaves behind."""
    exec(EXAMPLES[name], given)
    return given


def train(model, **inputs):
    out = model(**inputs)
    (out.loss if hasattr(out, "loss") else out.square().sum()).backward()


def test_all_are_tested():
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
    with rematpass.enable(memory_budget=1):  # whatever the example sets is taken back at the end of this
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
            self.layer = nn.Linear(3, 5)

        def training_step(self, batch, number):
            return self.layer(batch).square().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters())

    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.ones(7, 3), batch_size=7)
    run("lightning", torch=torch, trainer=trainer, module=Module(), loader=loader)
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
    """No Sequential: ``compile`` of torch's own classes compiles nothing, whatever the backend."""

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
    """On one rank, one half of the example after the other; test_ranks.py has two."""
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
