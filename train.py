"""Trains a backdoored classifier and keeps it: ``python train.py attack=badnets data=cifar10``."""

# The shell completion of fish looks for the word @hydra.main, which stands in fst_lightning/cli.
from fst_lightning.cli import train

if __name__ == "__main__":
    train()
