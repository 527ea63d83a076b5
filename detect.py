"""Scans a network for a backdoor: ``python detect.py checkpoint=FILE model=resnet18``."""

# The shell completion of fish looks for the word @hydra.main, which stands in fst_lightning/cli.
from fst_lightning.cli import detect

if __name__ == "__main__":
    detect()
