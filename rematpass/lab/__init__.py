"""Measures: what a plan really takes in bytes and seconds, against what was said."""
