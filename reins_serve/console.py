"""Where tables are printed: a terminal's own width, or a fixed one where the output goes into a file or a pipe."""

from rich.console import Console


def console(width: int) -> Console:
    """A console for tables; `width` holds where there is no terminal."""
    return Console(width=None if Console().is_terminal else width)
