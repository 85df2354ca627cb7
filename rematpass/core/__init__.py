"""Decides what is saved and what is recomputed, and when. Never imports torch."""
