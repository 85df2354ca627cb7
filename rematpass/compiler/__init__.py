"""Between torch and the core: captures the joint graph, carries out the plan, hands over to Inductor."""
