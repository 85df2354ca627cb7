"""Measures what training steps take in bytes, seconds and FLOPs, and compares strategies."""
