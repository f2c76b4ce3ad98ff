"""`reins-serve directions promote|canary|withdraw|rollback`: which version of a store is live."""

import getpass
import re
from typing import Annotated, Any

import typer

from reins_serve.errors import ReinsError
from reins_serve.rollout.pointer import Pointer
from reins_serve.rollout.storage import DirectionStore

app = typer.Typer(pretty_exceptions_show_locals=False)


def user() -> str:
    """The name that is recorded where none is given."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def share(text: str) -> float:
    """A share as people write it."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text.strip())
    if match is None:
        raise ReinsError(f"The share {text!r} is neither a percentage, such as 10%, nor a fraction, such as 0.1.")
    return float(match[1]) / (100 if match[2] else 1)


def rate(text: str) -> Any:
    """An option for a share, which may be left out."""
    return typer.Option(parser=share, metavar="SHARE", help=text)


STORE = "Folder or fsspec URL (s3://bucket/prefix) of the store."
Store = Annotated[str, typer.Option("--store", envvar="REINS_STORE", help=STORE)]
Model = Annotated[str, typer.Argument(help="Name of the model in the store.")]
Chosen = Annotated[str, typer.Argument(help="Number, beginning of the digest, live or candidate.")]
Who = Annotated[
    str, typer.Option("--who", default_factory=user, help="Who does it, for the record; default: the user's name.")
]
Why = Annotated[str, typer.Option("--why", help="Why, for the record.")]
Override = Annotated[str | None, typer.Option("--override", help="Reason to pass over a failed or missing gate.")]
Generation = Annotated[int | None, typer.Option("--generation", help="Do it only if the pointer is still at this one.")]


@app.command()
def promote(
    model: Model, version: Chosen, store: Store, why: Why, who: Who, override: Override = None,
    generation: Generation = None,
) -> None:  # fmt: skip
    """Make a version live for all generations, and end a canary."""
    opened = DirectionStore(store)
    _tell(opened, opened.promote(model, version, who=who, why=why, override=override, generation=generation))


@app.command()
def canary(
    model: Model,
    version: Chosen,
    fraction: Annotated[float, typer.Argument(parser=share, metavar="SHARE", help="Of the generations: 10% or 0.1.")],
    store: Store,
    why: Why,
    who: Who,
    override: Override = None,
    generation: Generation = None,
    auto_after: Annotated[
        int | None,
        typer.Option(help="End by itself, with a promotion after so many of its generations at the earliest."),
    ] = None,
    max_failed: Annotated[float | None, rate("Most of its generations that may fail.")] = None,
    max_failed_above_live: Annotated[float | None, rate("By how much it may fail more often than live.")] = None,
    max_unsafe: Annotated[float | None, rate("Most of its judged clips that may be unsafe.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Least mean score (0: unsafe class, 1: safe class).")] = None,
    max_score: Annotated[float | None, typer.Option(help="Greatest mean score.")] = None,
    auto_hours: Annotated[float | None, typer.Option(help="Withdrawn if not promoted by then; default: 24.")] = None,
) -> None:
    """Give a version a share of the generations, beside the live one.

    With --auto-after and limits the cluster's registry ends the canary: it promotes the version, or withdraws it.
    """
    declared = {
        "min_generations": auto_after,
        "max_failed_rate": max_failed,
        "max_failed_excess": max_failed_above_live,
        "max_unsafe_rate": max_unsafe,
        "min_score": min_score,
        "max_score": max_score,
        "deadline_s": None if auto_hours is None else 3600 * auto_hours,
    }
    auto = {name: value for name, value in declared.items() if value is not None} or None
    if auto is not None and auto_after is None:
        raise ReinsError("Limits are for a canary that ends by itself: say --auto-after N as well.")
    opened = DirectionStore(store)
    said: dict[str, Any] = {"who": who, "why": why, "override": override, "generation": generation, "auto": auto}
    _tell(opened, opened.canary(model, version, fraction, **said))


@app.command()
def withdraw(model: Model, store: Store, why: Why, who: Who, generation: Generation = None) -> None:
    """End a canary; what is live stays."""
    opened = DirectionStore(store)
    _tell(opened, opened.withdraw(model, who=who, why=why, generation=generation))


@app.command()
def rollback(model: Model, store: Store, why: Why, who: Who, generation: Generation = None) -> None:
    """Go back to the version that was live before, and end a canary."""
    opened = DirectionStore(store)
    _tell(opened, opened.rollback(model, who=who, why=why, generation=generation))


def _tell(store: DirectionStore, pointer: Pointer) -> None:
    """Say what serves now."""
    live, candidate = (
        digest and f"v{store.resolve(pointer.model, digest).number} ({digest[:12]})"
        for digest in (pointer.live, pointer.candidate)
    )
    beside = f", candidate {candidate} for {pointer.fraction:.4g} of the generations" if candidate else ""
    if pointer.auto is not None:
        beside += f", which the cluster's registry ends until {pointer.auto.deadline:%Y-%m-%d %H:%M} UTC"
    print(f"{pointer.model} generation {pointer.generation}: live {live}{beside}")
