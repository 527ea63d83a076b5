"""Purifies a backdoored classifier: ``python purify.py attack=blended defense=fst``."""

from fst_lightning.cli import purify

if __name__ == "__main__":
    purify()
