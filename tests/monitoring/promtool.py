"""Debian's promtool and prometheus, where they are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def promtool(*arguments: str | Path) -> tuple[bool, str]:
    """Whether promtool is content, and what it says."""
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False)
    return done.returncode == 0, done.stdout + done.stderr
