"""Imports that all processes of ``worker.py`` need, made once before the processes are forked."""

import contextlib

import rematpass.lab.benchmark.trial
import rematpass.lab.measure.warm_up  # noqa: F401

with contextlib.suppress(Exception):  # a model that needs transformers reports the error
    import transformers.modeling_utils  # noqa: F401
