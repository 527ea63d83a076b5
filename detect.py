"""Scans a network for a backdoor: ``python detect.py checkpoint=FILE model=resnet18``."""

from fst_lightning.cli import detect

if __name__ == "__main__":
    detect()
