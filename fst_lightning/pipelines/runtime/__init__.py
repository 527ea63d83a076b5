"""How a run uses the machine: processes, signals, memory, costs and resuming."""
