"""Values of every row of docs/migration.md by neural-tangents, stored for tests/test_migration.py.

PEERS=.venv-peers python benchmarks/migration_values.py [WORD ...] prints the largest relative difference of each row
(that has one of the words), and writes tests/migration_values.json. benchmarks/peers.sh makes the environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from peers import Peer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_migration import STORED, VALUES, differences, question, rows


def main(words: list[str]) -> None:
    """Ask for the values of the rows, and print how far ours are from them."""
    found = {row.theirs: STORED[row.theirs] for row in rows() if row.theirs in STORED}
    with Peer("nt", "peer_migration.py") as peer:
        for row in rows():
            if words and not any(word in row.theirs for word in words):
                continue
            found[row.theirs] = peer.ask(**question(row))
            try:
                print(f"{max(differences(row, found[row.theirs])):8.1e}  {row.theirs}")
            except Exception as error:  # the page is being written: the other rows go on
                print("FAILS   ", row.theirs, "|", row.ours, "|", repr(error)[:300])
    VALUES.write_text(json.dumps(found, indent=None).replace('"], "', '"],\n"').replace(']], "', ']],\n"') + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
