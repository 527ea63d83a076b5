"""A folder that keeps backdoored models, so that each is trained once."""

from fst_lightning.checkpoints.store.entry import SCHEMA, StoreEntry, StoreUse
from fst_lightning.checkpoints.store.folders import StoreError
from fst_lightning.checkpoints.store.store import Store

__all__ = ["SCHEMA", "Store", "StoreEntry", "StoreError", "StoreUse"]
