"""Prompts for recalibration: text, group, category and split, from the embedded world, a JSONL file or a hub data set.

A prompt asks for unsafe content when it has a category, and is benign without one. Labels of clips come from judges, never
from prompts. Splits (`fit`, `select`, `evaluate`) must share no group, or figures on one would flatter the other.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import from_json

from reins_serve.embedded.hard.prompts import prompts_in_turn
from reins_serve.embedded.hard.world import CONCEPTS
from reins_serve.embedded.prompts import implicit_prompts, prompts
from reins_serve.errors import ReinsError

Split = Literal["fit", "select", "evaluate"]
Kind = Literal["unsafe", "benign", "implicit"]
logger = logging.getLogger(__name__)

# Data sets whose licence restricts what may be done with them, and with what is fitted on them.
RESTRICTED = {"PKU-Alignment/SafeSora-Label": "CC BY-NC 4.0", "PKU-Alignment/SafeSora": "CC BY-NC 4.0"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _opened(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    try:
        return Image.open(value).convert("RGB")
    except (AttributeError, TypeError, OSError) as error:
        raise ValueError(f"no picture can be read from it ({error}): give the path of a PNG or JPEG file") from error


FirstFrame = Annotated[Image.Image, PlainValidator(_opened)]


class PromptRow(_Strict):
    """One prompt of a file.

    Attributes:
        text: The prompt.
        group: What folds and splits must not cut apart, such as a scene or an author; by default the text itself.
        category: What unsafe content it asks for outright; null for none.
        implicit: It only hints, so the clip may turn out either way.
        split: What it may be used for.
        image: The first frame, for a model that begins with one; in a file a path, from the file's folder.
    """

    text: str = Field(min_length=1)
    group: str = ""
    category: str | None = None
    implicit: bool = False
    split: Split
    image: FirstFrame | None = None

    @property
    def kind(self) -> Kind:
        return "implicit" if self.implicit else "unsafe" if self.category is not None else "benign"


class EmbeddedPrompts(_Strict):
    """The embedded world's own prompts; their splits share no combination of attributes."""

    kind: Literal["embedded"]


class HarderPrompts(_Strict):
    """The harder embedded world's own prompts; those of the split `evaluate` show combinations that training never saw.

    Attributes:
        asked: What prompts ask for that count as unsafe, in equal shares: `explosion`, `spill`, `both` at once.
        beside: What a part of the benign prompts asks for, in equal shares with plain ones: a concept that the direction leaves.
        first_frame: Whether each brings the first frame of its scene, for image-to-video.
    """

    kind: Literal["embedded-hard"]
    asked: tuple[Literal["explosion", "spill", "both"], ...] = Field(("explosion", "spill", "both"), min_length=1)
    beside: tuple[Literal["explosion", "spill"], ...] = ()
    first_frame: bool = False


class FilePrompts(_Strict):
    """A JSONL file whose lines are objects with the fields of `PromptRow`."""

    kind: Literal["file"]
    path: str


class HubPrompts(_Strict):
    """A data set of the hub, by columns. Splits are cut by group, by a hash: 50 % fit, 20 % select, 30 % evaluate.

    Attributes:
        category: Column with the category; `benign` lists its values that mean none.
        group: Column that groups; None: the text.
    """

    kind: Literal["hub"]
    id: str
    split: str = "train"
    revision: str | None = None
    text: str
    category: str
    benign: tuple[str, ...] = ()
    group: str | None = None


PromptsConfig = Annotated[EmbeddedPrompts | HarderPrompts | FilePrompts | HubPrompts, Field(discriminator="kind")]


def load_prompts(config: PromptsConfig, split: Split, kind: Kind, n: int, seed: int = 0) -> list[PromptRow]:
    """`n` prompts of a split and kind, the same for equal arguments; groups come in turn, so few prompts cover many.

    Raises:
        ReinsError: there are not enough, or the file cannot be read or is malformed; says which line.
    """
    if isinstance(config, EmbeddedPrompts):
        return _embedded(split, kind, n, seed)
    if isinstance(config, HarderPrompts):
        return _harder(config, split, kind, n, seed)
    rows = _file(config) if isinstance(config, FilePrompts) else _hub(config)
    _check_splits(rows)
    chosen = [row for row in rows if row.split == split and row.kind == kind]
    if len(chosen) < n and not (kind == "implicit" and not chosen):
        raise ReinsError(
            f"The prompts have {len(chosen)} {kind} ones for `{split}`, and {n} are asked for. Add prompts, or lower `{split}`."
        )
    return _in_turn(chosen, seed)[:n]


def _embedded(split: Split, kind: Kind, n: int, seed: int) -> list[PromptRow]:
    found = implicit_prompts(split, n, seed) if kind == "implicit" else prompts(split, kind == "unsafe", n, seed)
    category = "explosion" if kind == "unsafe" else None
    return [
        PromptRow(text=p.text, group=p.group, category=category, implicit=kind == "implicit", split=split)
        for p in found
    ]


def _harder(config: HarderPrompts, split: Split, kind: Kind, n: int, seed: int) -> list[PromptRow]:
    """Kinds in turn."""
    hints = [f"{concept} hinted at" for concept in CONCEPTS if concept in config.asked or "both" in config.asked]
    kinds = ["benign", *config.beside] if kind == "benign" else list(config.asked) if kind == "unsafe" else hints
    return [
        PromptRow(
            text=prompt.text,
            group=prompt.group,
            category=prompt.asked if kind == "unsafe" else None,
            implicit=kind == "implicit",
            split=split,
            image=prompt.first_frame() if config.first_frame else None,
        )
        for prompt in prompts_in_turn(split, kinds, n, seed)
    ]


def _file(config: FilePrompts) -> list[PromptRow]:
    try:
        lines = Path(config.path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReinsError(f"The prompts {config.path} cannot be read ({error}).") from error
    rows = []
    images: dict[str, Image.Image] = {}  # prompts share images: each is read once
    for number, line in enumerate(lines, start=1):
        try:
            document = from_json(line)
        except ValueError as error:
            raise ReinsError(f"Line {number} of {config.path} is not JSON ({error}).") from error
        path = document.get("image") if isinstance(document, dict) else None
        if isinstance(path, str):
            document["image"] = images.get(path) or Path(config.path).parent / path
        try:
            row = PromptRow.model_validate(document)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ReinsError(f"Line {number} of {config.path} is no prompt ({problems}).") from error
        if isinstance(path, str) and row.image is not None:
            images[path] = row.image
        rows.append(row.model_copy(update={"group": row.group or row.text}))
    return rows


def _hub(config: HubPrompts) -> list[PromptRow]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ReinsError("Prompts of the hub need the package `datasets`: pip install 'reins-serve[hub]'.") from error
    if config.id in RESTRICTED:
        logger.warning(
            "%s is licensed %s: directions fitted on it may not be used commercially.", config.id, RESTRICTED[config.id]
        )
    data = load_dataset(config.id, split=config.split, revision=config.revision)
    return hub_rows(config, data)


def hub_rows(config: HubPrompts, data: Iterable[dict[str, Any]]) -> list[PromptRow]:
    """Rows of a data set as prompts. Raises ReinsError for a column that is not there."""
    rows = []
    for record in data:
        missing = {config.text, config.category, config.group or config.text} - set(record)
        if missing:
            raise ReinsError(
                f"{config.id} has no column {', '.join(sorted(missing))}; it has {', '.join(sorted(record))}."
            )
        value = record[config.category]
        group = str(record[config.group or config.text])
        category = None if value is None or str(value) in config.benign else str(value)
        rows.append(PromptRow(text=str(record[config.text]), group=group, category=category, split=_split_of(group)))
    return rows


def _split_of(group: str) -> Split:
    share = np.random.default_rng(list(group.encode())).random()
    return "fit" if share < 0.5 else "select" if share < 0.7 else "evaluate"


def _check_splits(rows: list[PromptRow]) -> None:
    places: dict[str, str] = {}
    for row in rows:
        if places.setdefault(row.group, row.split) != row.split:
            raise ReinsError(
                f"The group {json.dumps(row.group)[:60]} is in the splits `{places[row.group]}` and `{row.split}`: figures on one "
                "would flatter the other. Put a group into one split."
            )


def _in_turn(rows: list[PromptRow], seed: int) -> list[PromptRow]:
    """All groups once, then all a second time, and so on; shuffled."""
    rng = np.random.default_rng(seed)
    by_group: dict[str, list[PromptRow]] = {}
    for index in rng.permutation(len(rows)):
        by_group.setdefault(rows[index].group, []).append(rows[index])
    turns = max(map(len, by_group.values()), default=0)
    return [group[turn] for turn in range(turns) for group in by_group.values() if turn < len(group)]
