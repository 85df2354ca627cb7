"""A joint graph and its context in torch, read into a ``JointGraph``."""
