"""What the scripts have written to `benchmarks/results`."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
NOT_RUN = "not run"

Figures = dict[str, Any]


def read(name: str) -> Figures | None:
    """What a script has written; None if it was not run."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None
