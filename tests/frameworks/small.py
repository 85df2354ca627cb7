"""Helpers for the tests of frameworks: a Llama that compiles in seconds, and the peak of a span of code."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rematpass.compiler.devices import record
from rematpass.compiler.devices.allocator_trace import live_bytes
from rematpass.lab.models.build import build

LENGTH, VOCABULARY = 64, 128
SIZES = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 160, "vocabulary": VOCABULARY, "length": LENGTH}


def llama():
    """A Llama of transformers with the same random weights each time."""
    return build("llama", **SIZES).module


def tokens(count, seed=0):
    """A data set of ``count`` sequences."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


@contextmanager
def peak_of() -> Iterator[list[int]]:
    """Append to the list the peak of the bytes that are allocated inside the ``with``."""
    found: list[int] = []
    with record(torch.device("cpu")) as recording:
        yield found
    found.append(max(moment.nbytes for moment in live_bytes(recording.events, set())))


def assert_as_planned(measured, planned):
    """Plans exclude the workspace of CPU attention's backward, per thread, and the framework's own scalars."""
    workspace = 2 * 4 * 32 * LENGTH * torch.get_num_threads()
    assert planned <= measured + 1024
    assert measured <= planned + workspace + 1024


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def close(seen, expected, rtol=1e-4, atol=1e-6):
    assert seen.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(seen[name], tensor, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")
