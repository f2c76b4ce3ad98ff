"""Where a script's figures go, a JSON file, if one was asked for, and mostly the screen as well; and its progress."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(figures: Mapping[str, Any], file: Path | None) -> None:
    """For `--json FILE`."""
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n")


def show(figures: Mapping[str, Any], file: Path | None) -> None:
    """Print the figures, and write them."""
    print(json.dumps(figures, indent=1))
    write(figures, file)


def anew(before: Mapping[str, Any], now: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Figures with some of their rows measured anew: those of before that have the same `keys`, and others beside them."""
    rows = {tuple(row[key] for key in keys): row for row in (*before["rows"], *now["rows"])}
    return {**before, "rows": list(rows.values()), "seconds": before["seconds"] + now["seconds"]}


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)
