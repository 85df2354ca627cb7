"""Bytes, seconds and FLOPs of one training step, and the rates of a device."""
