"""The documentation of models says what the code says."""

import re
from pathlib import Path

from reins_serve.models.options import SWITCHES

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_table_of_switches_is_the_one_that_is_enforced() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", DOCS.read_text(), flags=re.MULTILINE))
    assert rows == dict(SWITCHES)
