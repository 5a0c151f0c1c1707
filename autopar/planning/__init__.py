"""From a traced program to plans: for one setting, or for the best of many (mesh shapes, micro-batches, budgets)."""
