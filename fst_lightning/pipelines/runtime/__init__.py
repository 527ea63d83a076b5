"""What a run needs of the machine: processes, signals, memory, and a way to resume."""
