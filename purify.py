"""Purifies a backdoored classifier: ``python purify.py attack=blended defense=fst``."""

# The shell completion of fish looks for the word @hydra.main, which stands in fst_lightning/cli.
from fst_lightning.cli import purify

if __name__ == "__main__":
    purify()
