"""The solvers: from a joint graph and its costs to plans."""
