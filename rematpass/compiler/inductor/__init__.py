"""Everything that depends on how Inductor works: its order, its fusion, its memory, its settings."""
