"""For all tests: how many examples properties try, what is skipped without a GPU, and what runs only when asked for.

``HYPOTHESIS_PROFILE=many pytest`` searches for longer; ``ci`` (the default where the variable CI is set) tries the
same examples every time and prints how to repeat one that fails.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from support.graphs import show

from rematpass import budget
from rematpass.core.graph import JointGraph

settings.register_profile("few", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("few"), derandomize=True, print_blob=True)
settings.register_profile("many", settings.get_profile("few"), max_examples=2000, print_blob=True)
budget.LEAST_BUDGET_BYTES = 1  # the tests' models are tiny; tests/test_config.py tests the real limit
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "few"))

JointGraph._repr_pretty_ = lambda self, printer, cycle: printer.text(show(self))  # for hypothesis's failing examples


def pytest_ignore_collect(collection_path, config):
    """Tests marked ``frameworks`` take minutes and need more libraries; only ``pytest -m frameworks`` collects them."""
    if collection_path.name == "frameworks" and "frameworks" not in config.option.markexpr:
        return True
    return None


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_cuda():
    import torch  # not at the top: the core's tests run without it

    return torch.cuda.is_available()
