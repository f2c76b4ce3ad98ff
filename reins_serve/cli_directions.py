"""`reins-serve directions`: what a direction file says, which versions a store holds, and which of them is live."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from reins_serve import cli_moves, cli_signatures
from reins_serve.cli_moves import STORE, Model, Store, Who, Why
from reins_serve.console import console
from reins_serve.errors import ReinsError
from reins_serve.rollout.compare import changes, cosines
from reins_serve.rollout.overview import gates_of, overview, signers_of
from reins_serve.rollout.signatures import Signature, Trust, load_signature, short, signatures_beside
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import Direction

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_show_locals=False)
app.add_typer(cli_moves.app)
app.add_typer(cli_signatures.app)

AnyStore = Annotated[str | None, typer.Option("--store", envvar="REINS_STORE", help=STORE)]
File = Annotated[str, typer.Argument(help="Direction file; with --store also MODEL@VERSION, such as embedded@live.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_versions(
    store: Store,
    model: Annotated[str | None, typer.Argument(help="Default: every model.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of a store: what is live, since when, what it was fitted from, which gates it passed, who signed it."""
    opened = DirectionStore(store)
    rows = [row for name in ([model] if model else opened.models()) for row in overview(opened, name)]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        _print_table(rows)
    else:
        print(f"No versions of {model or 'any model'} in {store}.")


@app.command()
def show(file: File, store: AnyStore = None) -> None:
    """Print everything that a direction file says, and who signed it, as JSON, without loading a model."""
    direction, signatures = _read(file, store)
    signers = signers_of(direction.sha256, signatures, Trust.of())
    print(json.dumps({"sha256": direction.sha256, **signers, **direction.meta.model_dump(mode="json")}, indent=2))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Direction file.")],
    model: Annotated[str | None, typer.Option(help="Load this model of the catalogue and prove the steering.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: the catalogue's.")] = None,
) -> None:
    """Validate a direction file; with --model also load the model and run the start-up proof with it."""
    direction = Direction.load(file)
    checked: dict[str, Any] = {"file": str(file), "sha256": direction.sha256, "valid": True, **gates_of(direction)}
    if model is not None:
        from reins_serve.models import catalog
        from reins_serve.models.loading import load
        from reins_serve.models.options import LoadingOptions
        from reins_serve.plugin import attach

        if direction.model != model:
            raise ReinsError(f"{file} is a direction of {direction.model}, not of {model}. Check it with that model.")
        options = LoadingOptions.model_validate({"device": device, "dtype": dtype, "allow_unverified": True})
        steering = attach(load(catalog.get(model), options), model=model, directions={"live": direction})
        checked["proof"] = asdict(steering.proof["live"])
    print(json.dumps(checked, indent=2))


@app.command()
def diff(a: File, b: File, store: AnyStore = None, as_json: AsJson = False) -> None:
    """Compare two directions without loading a model: cosine per block, and the fields that changed."""
    (one, _), (other, _) = _read(a, store), _read(b, store)
    by_block, changed = cosines(one, other), changes(one, other)
    if as_json:
        print(json.dumps({"cosine": by_block, "changed": changed}, indent=2))
        return
    for block, cosine in by_block.items():
        print(f"block {block}: " + (f"cosine {cosine:.4f}" if cosine is not None else "only in one of them"))
    table = Table("field", "A", "B")
    for field, (before, after) in changed.items():
        table.add_row(*(Text(text) for text in (field, json.dumps(before), json.dumps(after))))
    console(200).print(table if changed else "no field differs")


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(help="Direction file.")],
    store: Store,
    why: Why,
    who: Who,
    model: Annotated[str | None, typer.Option(help="Refuse the file if it is of another model.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML report to keep beside it.", exists=True, dir_okay=False)
    ] = None,
    signature: Annotated[Path | None, typer.Option(help="What `directions sign` made of the file.")] = None,
    new_base: Annotated[bool, typer.Option("--new-base", help="The model's weights have changed, on purpose.")] = False,
) -> None:
    """Store a direction as a version, which is not live yet; the same file again is the same version."""
    document = None if report is None else report.read_bytes()
    direction = Direction.load(file)
    signed = None if signature is None else load_signature(signature)
    version = DirectionStore(store).publish(
        direction, model=model, report=document, signature=signed, new_base=new_base, who=who, why=why
    )
    print(f"{version.model} version {version.number}: {version.sha256}")


@app.command()
def history(model: Model, store: Store, as_json: AsJson = False) -> None:
    """Print the audit log, oldest first: who did what, when and why, from which version to which."""
    opened = DirectionStore(store)
    events = opened.history(model)
    if as_json:
        print(json.dumps([event.model_dump(mode="json") for event in events], indent=2))
        return
    numbers = {version.sha256: f"v{version.number}" for version in opened.versions(model)}
    table = Table("when (UTC)", "what", "from", "to", "share", "generation", "who", "why", "override", "key")
    for event in events:
        before, after = (numbers.get(digest, digest[:12]) if digest else "" for digest in (event.before, event.after))
        share = f"{event.fraction:.0%}{', auto' if event.auto else ''}" if event.fraction else ""
        cells = (f"{event.at:%Y-%m-%d %H:%M:%S}", event.action, before, after, share, str(event.generation or ""), event.by,
                 event.why, event.override or "", short(event.key or ""))  # fmt: skip
        table.add_row(*map(Text, cells))
    console(200).print(table)


@app.command()
def collect(
    model: Model, store: Store, why: Why, who: Who,
    keep: Annotated[int, typer.Option(help="Versions and events to keep.", min=0)] = 20,
) -> None:  # fmt: skip
    """Remove the files of old versions that nothing needs: neither live, candidate, in reach of a rollback, nor recent."""
    removed = DirectionStore(store).collect(model, keep=keep, who=who, why=why)
    print(f"{model}: removed " + (", ".join(f"v{version.number}" for version in removed) or "nothing"))


def _read(file: str, store: str | None) -> tuple[Direction, Sequence[Signature]]:
    """A direction of the store or in a file, and its signatures."""
    model, at, version = file.rpartition("@")
    if at and store is not None and not Path(file).exists():
        opened = DirectionStore(store)
        direction = opened.load(model, opened.resolve(model, version).sha256)
        return direction, opened.signatures(model, direction.sha256)
    return Direction.load(file), signatures_beside(file)


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "model",
        "version",
        "digest",
        "state",
        "since (UTC)",
        "steers",
        "fitted from",
        "gates",
        "signed by",
        "published",
        "by",
    )
    for row in rows:
        state = row["state"] if row["fraction"] is None else f"{row['state']} {row['fraction']:.4g}"
        state += ", auto" if row["auto"] else ""
        since, published = ((row[key] or "")[:19].replace("T", " ") for key in ("since", "published"))
        cells = [row["model"], f"v{row['number']}", row["sha256"][:12], state, since, row.get("steers", "")]
        signed = ", ".join(row["signed_by"]) + (" (not trusted)" if row["trusted"] is False else "")
        cells += [row.get("fitted", ""), _verdict(row), signed, published, row["by"]]
        table.add_row(*map(Text, cells), style={"live": "bold green", "candidate": "yellow"}.get(row["state"]))
    console(200).print(table)


def _verdict(row: dict[str, Any]) -> str:
    if "error" in row:
        return "file missing or damaged"
    failed = ", ".join(row["gates_failed"])
    return f"failed: {failed}" if failed else f"{row['gates']} passed" if row["gates"] else "none was run"
