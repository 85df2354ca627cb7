"""What the processes of ``worker.py`` have in common: imported once, before they are forked."""

import contextlib

import rematpass.lab.benchmark.trial  # noqa: F401

with contextlib.suppress(Exception):  # of a model that needs it, the one to say what is wrong with it
    import transformers.modeling_utils  # noqa: F401
