"""DDP and FSDP2 in two processes: all ranks have the same plans, and the gradients of the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
from small import close

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.skipif(not dist.is_available(), reason="this torch is built without torch.distributed"),
]
RANKS = 2


def launched(way, path):
    """The plans and gradients of each rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command += [str(Path(__file__).with_name("ranks.py")), way, str(path)]
    done = subprocess.run(
        command,
        env={**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(path / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("way", ranks.WAYS)
def test_ranks_have_equal_plans_and_the_gradients_of_the_whole_batch(way, tmp_path):
    first, *others = launched(way, tmp_path)
    assert first["plans"]
    assert any(recomputed for *_, recomputed in first["plans"])
    if way.startswith("fsdp"):
        assert any(calls == ranks.BLOCKS for *_, calls, _ in first["plans"])
    if way == "ddp_in_buckets":
        assert len(first["plans"]) > 1
    expected = ranks.alone()
    close(first["gradients"], expected)
    for other in others:
        assert other["plans"] == first["plans"]
        close(other["gradients"], first["gradients"], rtol=0, atol=0)
