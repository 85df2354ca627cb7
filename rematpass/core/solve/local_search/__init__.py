"""Plans improved step by step, each step judged by the simulator."""
