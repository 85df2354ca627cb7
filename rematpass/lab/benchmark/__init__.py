"""Many strategies on one model, each measured in a process of its own."""
