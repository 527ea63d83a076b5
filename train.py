"""Trains a backdoored classifier and keeps it: ``python train.py attack=badnets data=cifar10``."""

from fst_lightning.cli import train

if __name__ == "__main__":
    train()
