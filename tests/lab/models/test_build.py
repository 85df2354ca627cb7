"""The models: their sizes, that they train, and which functions of users are refused."""

import sys

import pytest
import torch
from torch import nn

from rematpass.errors import MeasureError
from rematpass.lab.measure.memory_and_time import measure_memory, run_step
from rematpass.lab.models.build import build, find_blocks, load
from rematpass.lab.models.catalog import MODELS
from rematpass.lab.models.networks import TinyGPT, chain, lowest_loss, walk

SMALL = {
    "llama": {"width": 32, "layers": 2, "mlp": 48, "vocabulary": 64, "length": 16},
    "llama-small": {"width": 32, "layers": 2, "mlp": 48, "vocabulary": 64, "length": 16},
    "gpt2": {"width": 32, "layers": 2, "vocabulary": 64, "length": 16},
    "vit": {"width": 32, "layers": 2, "side": 32, "batch": 2},
    "resnet50": {"depths": (2, 1, 1, 1), "side": 32, "batch": 2},
    "mlp": {"layers": 4, "width": 8, "batch": 16},
    "chain": {"layers": 4, "width": 8, "batch": 16},
    "unet": {"channels": 8, "levels": 3, "side": 16, "batch": 2},
    "t5": {"width": 32, "layers": 2, "mlp": 48, "vocabulary": 64, "length": 16},
    "tiny-gpt": {"width": 32, "layers": 2, "vocabulary": 64, "batch": 2, "length": 16},
}
BLOCKS = {"resnet50": 5, "mlp": 4, "chain": 4, "unet": 5, "t5": 4}


def gradients(model):
    torch.manual_seed(3)  # for dropout
    run_step(model.step, model.parameters)
    return [p.grad for p in model.parameters if p.grad is not None]


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if not spec.for_gpu])
class TestModel:
    def test_step_trains_all_parameters(self, name):
        model = build(name, **SMALL[name])
        assert len(gradients(model)) == len(model.parameters)
        assert model.module.training

    def test_same_seed_same_model(self, name):
        state = torch.get_rng_state()
        one, same, other = (build(name, seed=seed, **SMALL[name]) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        firsts = [max(m.parameters, key=torch.Tensor.numel) for m in (one, same, other)]
        assert torch.equal(firsts[0], firsts[1])
        assert not torch.equal(firsts[0], firsts[2])

    def test_checkpointed_blocks_keep_the_gradients(self, name):
        plain, checkpointed = (build(name, **SMALL[name]) for _ in range(2))
        assert len(checkpointed.blocks) == BLOCKS.get(name, 2)
        checkpointed.checkpoint_blocks()
        for ours, theirs in zip(gradients(checkpointed), gradients(plain), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


# MiB of parameters.
PARAMETERS = {"llama": 26.1, "gpt2": 26.4, "vit": 25.0, "resnet50": 89.7, "mlp": 32.2, "chain": 16.1}


@pytest.mark.parametrize("name", PARAMETERS)
def test_models_have_the_expected_parameter_bytes(name):
    nbytes = sum(p.numel() * p.element_size() for p in build(name).parameters)
    assert abs(nbytes / 2**20 - PARAMETERS[name]) <= 0.05


@pytest.mark.slow
def test_the_chain_has_the_expected_eager_peak():
    model = build("chain")
    assert measure_memory(model.step, model.parameters, warm=0).peak == 272 * 2**20 + 8


@pytest.mark.parametrize(
    ("name", "millions"),
    [("llama-1b-2k", 1236), ("llama-1b-16k", 1236), ("gpt2-medium", 355), ("vit-l", 304), ("resnet50-224", 25.6)],
)
def test_models_for_a_gpu_have_common_parameter_counts(name, millions):
    spec = MODELS[name]
    with torch.device("meta"):
        module, _ = spec.make(**spec.sizes)
    assert spec.for_gpu
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)


def test_dtype_applies_to_parameters_and_inputs():
    model = build("mlp", dtype=torch.bfloat16, **SMALL["mlp"])
    assert {p.dtype for p in model.parameters} == {torch.bfloat16}
    assert model.step().dtype == torch.bfloat16


def test_the_u_net_has_a_block_per_level_and_direction():
    model = build("unet", **SMALL["unet"])
    assert [type(b).__name__ for b in model.blocks] == ["DoubleConv"] * 5


def test_checkpointing_saves_memory():
    plain, checkpointed = (build("chain", layers=64, width=8, batch=512) for _ in range(2))
    checkpointed.checkpoint_blocks()
    peaks = [measure_memory(m.step, m.parameters).peak for m in (checkpointed, plain)]
    assert peaks[0] < peaks[1] / 2


def test_tiny_gpt_learns_the_graph():
    torch.manual_seed(0)
    module = TinyGPT(width=32, layers=1, heads=2, vocabulary=16, length=32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        loss = module(walk(8, 32, 16, generator))
        loss.backward()
        optimizer.step()
    assert lowest_loss() - 0.2 < loss.item() < lowest_loss() + 0.5


class TestFindBlocks:
    def test_a_model_without_lists_has_no_blocks(self):
        assert find_blocks(nn.Linear(3, 5)) == []

    def test_members_without_submodules_are_not_blocks(self):
        assert find_blocks(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))) == []

    def test_nested_lists_give_the_outermost_members(self):
        assert len(find_blocks(chain(layers=8, segments=2))) == 2

    def test_model_without_blocks_cannot_be_checkpointed(self):
        model = build("chain", layers=2, width=8, batch=16)
        model.blocks = []
        with pytest.raises(MeasureError, match="chain has no list of equal blocks"):
            model.checkpoint_blocks()


def test_an_unknown_model_is_refused_with_the_known_names():
    message = r"unknown model 'lama'; did you mean llama\? Valid names are llama, .* or package.module:function"
    with pytest.raises(MeasureError, match=message):
        build("lama")


USERS = """
import torch

def good():
    model = torch.nn.Linear(3, 5)
    return model, lambda: model(torch.ones(2, 3)).sum()

def nothing(): pass
def swapped(): return (lambda: 0), torch.nn.Linear(3, 5)
def three(): return 1, 2, 3
def broken(): raise ValueError("no data")
def frozen():
    return torch.nn.Linear(3, 5).requires_grad_(False), lambda: 0
"""


class TestLoad:
    @pytest.fixture(autouse=True)
    def in_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        (tmp_path / "users_model.py").write_text(USERS)
        (tmp_path / "broken_model.py").write_text("1 / 0")
        yield
        sys.modules.pop("users_model", None)

    def test_from_the_current_directory(self):
        model = load("users_model:good")
        assert model.name == "users_model:good"
        assert len(gradients(model)) == 2

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (
                "no_such_model:f",
                "cannot import 'no_such_model:f': No module named 'no_such_model'; expected package.mod",
            ),
            ("users_model:absent", "cannot import 'users_model:absent': .* has no attribute 'absent'"),
            ("users_model:", "cannot import 'users_model:': .*; expected package.module:function"),
            (":f", "cannot import ':f': .*; expected package.module:function"),
            ("broken_model:f", "importing 'broken_model' raised ZeroDivisionError: division by zero"),
            ("users_model:broken", "users_model:broken raised ValueError: no data"),
            ("users_model:nothing", r"returned None; expected \(module, step\), a torch module and a function"),
            ("users_model:swapped", r"returned a tuple of function, Linear; expected \(module, step\)"),
            ("users_model:three", "returned a tuple of int, int, int; expected"),
            ("users_model:frozen", "has no parameter that requires a gradient, so there is nothing to train"),
        ],
    )
    def test_an_invalid_function_is_refused(self, target, message):
        with pytest.raises(MeasureError, match=message):
            load(target)
