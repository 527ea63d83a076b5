"""Speed, beside the usual way of doing it; one command each, see docs/benchmarks.md."""
