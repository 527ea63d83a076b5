"""Read anybody's weights safely; keep backdoored models in a store."""

from fst_lightning.checkpoints.card import CARD_KEY, ModelCard, ModelChoice, Plain
from fst_lightning.checkpoints.errors import CheckpointError
from fst_lightning.checkpoints.keys import KeyMap, match_keys
from fst_lightning.checkpoints.load import load_into
from fst_lightning.checkpoints.read import Checkpoint, read_checkpoint
from fst_lightning.checkpoints.store import SCHEMA, Store, StoreEntry, StoreError, StoreUse
from fst_lightning.checkpoints.write import write_state

__all__ = [
    "CARD_KEY",
    "SCHEMA",
    "Checkpoint",
    "CheckpointError",
    "KeyMap",
    "ModelCard",
    "ModelChoice",
    "Plain",
    "Store",
    "StoreEntry",
    "StoreError",
    "StoreUse",
    "load_into",
    "match_keys",
    "read_checkpoint",
    "write_state",
]
