"""One rank of a training run, for test_ranks.py: ``torchrun ranks.py HOW OUTPUT``.

HOW is a name in ``WAYS``. Rank r trains on its half of the batch and writes its plans and its gradients, unsharded, to
OUTPUT/r.pt. ``alone`` runs the same model in eager mode on the whole batch.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import rematpass
from rematpass.lab.models.networks import TinyGPT

OPTIONS = {"memory_budget": 0, "strict": True}
ROWS = 4
BLOCKS = 3


def model() -> TinyGPT:
    torch.manual_seed(0)
    return TinyGPT(128, BLOCKS, vocabulary=61, length=64)


def rows() -> torch.Tensor:
    return torch.randint(61, (ROWS, 64), generator=torch.Generator().manual_seed(1))


def ddp(module: TinyGPT) -> nn.Module:
    """Compiled around DDP, as torch's DDP notes recommend; all parameters are in one bucket."""
    return torch.compile(DistributedDataParallel(module), backend="remat", options=OPTIONS)


def ddp_in_buckets(module: TinyGPT) -> nn.Module:
    """Dynamo splits the graph where a bucket (1 MiB) is full, so that communication starts before backward ends."""
    return torch.compile(DistributedDataParallel(module, bucket_cap_mb=1), backend="remat", options=OPTIONS)


def ddp_around(module: TinyGPT) -> nn.Module:
    module.compile(backend="remat", options=OPTIONS)
    return DistributedDataParallel(module)


def fsdp(module: TinyGPT) -> nn.Module:
    """As in torchtitan: each block is compiled by itself, then sharded."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in module.blocks:
        block.compile(backend="remat", options=OPTIONS)
        fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def fsdp_compiled_whole(module: TinyGPT) -> nn.Module:
    """Sharded first, then compiled as a whole: the graph breaks at FSDP's hooks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in module.blocks:
        fully_shard(block, mesh=mesh)
    return torch.compile(fully_shard(module, mesh=mesh), backend="remat", options=OPTIONS)


def enabled(module: TinyGPT) -> nn.Module:
    """Plain torch.compile under ``enable``, as in an unchanged program."""
    rematpass.enable(**OPTIONS)
    return torch.compile(DistributedDataParallel(module))


WAYS = {way.__name__: way for way in (ddp, ddp_in_buckets, ddp_around, fsdp, fsdp_compiled_whole, enabled)}


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in module.named_parameters():
        grad = parameter.grad
        name = name.replace("_orig_mod.", "").removeprefix("module.")
        found[name] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).clone()
    return found


def alone() -> dict[str, torch.Tensor]:
    module = model()
    module(rows()).backward()
    return gradients(module)


def main(how: str, output: str) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    module = WAYS[how](model())
    mine = rows().chunk(ranks)[rank]
    for _ in range(2):  # the second one runs the compiled graphs
        module.zero_grad()
        module(mine).backward()
    found = {
        "plans": [(s.graph, s.plan_hash, s.planned_peak, s.calls, s.recomputed_ops) for s in rematpass.plans()],
        "gradients": gradients(module),
    }
    torch.save(found, Path(output) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
