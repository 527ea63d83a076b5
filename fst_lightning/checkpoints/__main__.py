"""Lists and prunes a store: ``python -m fst_lightning.checkpoints list``."""

from __future__ import annotations

import argparse
import os
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fst_lightning.checkpoints.store import Store
from fst_lightning.printable import printable


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Of the command line; None takes the process's own.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fst_lightning.checkpoints", description=__doc__
    )
    default = os.environ.get("FST_LIGHTNING_STORE", "store")
    parser.add_argument("--store", default=default, help="its folder (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the backdoored models that are kept")
    prune = commands.add_parser("prune", help="remove models")
    prune.add_argument(
        "--keep-gb", type=float, help="remove the least recently used until at most so many GB"
    )
    prune.add_argument(
        "--older-than-days", type=float, help="remove what is older than so many days"
    )
    prune.add_argument("--stale", action="store_true", help="remove what no run would take")
    prune.add_argument("keys", nargs="*", help="remove these models")
    options = parser.parse_args(arguments)

    store = Store(options.store)
    if options.command == "list":
        _show(store)
        return 0
    keep = None if options.keep_gb is None else options.keep_gb * 1e9
    try:
        removed = store.prune(keep, options.older_than_days, options.keys or None, options.stale)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"removed {len(removed)}: {', '.join(removed)}" if removed else "removed nothing")
    return 0


def _show(store: Store) -> None:
    table = Table("key", "attack", "data", "model", "seed", "MB", "made", "used", "", box=None)
    entries = store.list()
    for entry in entries:
        names = [
            printable(part.get("name", "?")) if isinstance(part, dict) else "?"
            for part in (entry.description.get(group) for group in ("attack", "data", "model"))
        ]
        seed, size = printable(entry.description.get("seed", "?")), f"{entry.bytes / 1e6:.1f}"
        times = [f"{when:%Y-%m-%d}" for when in (entry.created, entry.used)]
        cells = [entry.key, *names, seed, size, *times, "stale" if entry.stale else ""]
        table.add_row(*map(Text, cells))  # unchanged: a name in brackets is not a color
    if entries:
        # In a pipe, lines must not be folded at 80 columns.
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    else:
        print(f"{store.root} keeps no model yet.")


if __name__ == "__main__":
    sys.exit(main())
