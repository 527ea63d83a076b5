"""What a run measures: scores, shifts, evidence, robustness checks and scans."""
