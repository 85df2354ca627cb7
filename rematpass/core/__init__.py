"""The planner: decides what is saved, what is recomputed, and when. Never imports torch."""
