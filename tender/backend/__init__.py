"""The doors: ways to run a start state. Each offers what `Vm` needs and knows nothing of the others."""
