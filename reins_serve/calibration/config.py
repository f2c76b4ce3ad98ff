"""The configuration of a recalibration: which model, prompts and judges, what is tried, and where the result goes."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reins_serve.calibration.judges import JudgeConfig
from reins_serve.calibration.prompt_sets import PromptsConfig
from reins_serve.errors import ReinsError
from reins_serve.models.catalog import CatalogEntry, check_own
from reins_serve.models.options import LoadingOptions
from reins_serve.steering.direction import Window

Operation = Literal["add", "setpoint"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tried(_Strict):
    """One way of steering that the selection tries at every block: operation, norm rule, branches, and strengths.

    Attributes:
        in_a_row: Blocks one after the other that steer together.
        turns: In a row, each label's own direction in turn; otherwise that of all labels together at every block.
        end: Share of the steps after which it steers no more; None: as the configuration's window, which is what is captured
            in either case.
        margin: Of a set-point, by which share of the gap between the classes its target is less than the safe mean.
        guards: In a row of set-points, the labels by which its last blocks, one each, push only clips that the others have not
            made safe.
        shortfall: From which share of the gap below the safe mean on guards push a clip.
        strengths: Multiples of the operation's unit (`deficit` for a set-point, `ref_norm` for an addition).
    """

    operation: Operation
    norm: Literal["token", "channel", "none"] = "none"
    branches: Literal["both", "cond"] = "cond"
    in_a_row: int = Field(1, ge=1)
    turns: bool = False
    end: float | None = Field(None, gt=0, le=1)
    margin: float = Field(0.0, ge=0, lt=1)
    guards: tuple[str, ...] = ()
    shortfall: float = Field(0.25, gt=0, le=0.5)
    strengths: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Tried":
        if self.turns and self.in_a_row < 2:
            raise ValueError("labels take turns at several blocks: give in_a_row as well")
        if self.margin and self.operation != "setpoint":
            raise ValueError("margin is for setpoint: an addition has no target")
        if self.guards and not (self.operation == "setpoint" and len(self.guards) < self.in_a_row):
            raise ValueError(
                "guards are the last blocks of a setpoint in a row, not all of them: give in_a_row as well"
            )
        return self


class Round(_Strict):
    """One round of the selection: how many candidates it measures (None: all), at how many prompts of each kind."""

    candidates: int | None = Field(None, ge=1)
    prompts: int = Field(ge=4)


class Selection(_Strict):
    """How block, operation and strength are chosen on selection prompts.

    Attributes:
        tried: What is tried.
        blocks: Numbers of the blocks; None: all.
        choose: `efficacy`: the fewest unsafe clips at no benign loss; `half_depth`: the same, at the middle block only.
        rounds: Successive halving: all candidates at few prompts, the best of them at more.
        doses: Multiples of the chosen strength that the dose curve measures, and that may serve in its place if it stands at the
            edge; 1 is added.
    """

    tried: tuple[Tried, ...] = Field(min_length=1)
    blocks: tuple[int, ...] | None = None
    choose: Literal["efficacy", "half_depth"] = "efficacy"
    rounds: tuple[Round, ...] = Field(min_length=1)
    doses: tuple[float, ...] = (0.25, 0.5, 0.75, 1.25, 1.5, 2.0)


class Workers(_Strict):
    """What Ray reserves: workers that generate, workers that judge, and clips of one call."""

    generators: int = Field(1, ge=1)
    judges: int = Field(1, ge=1)
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    torch_threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)


class RecalibrateConfig(_Strict):
    """A recalibration.

    Attributes:
        model: The catalogue's name.
        entry: A catalogue entry of your own, of the same name, for a model that the catalogue does not have.
        task: What it makes, one of its entry's tasks; None: the first. Prompts of image-to-video carry an image each.
        source: Another checkpoint of the same layout: a folder or a hub id; None: the catalogue's.
        name: Name of the direction, a word for file names.
        prompts: Where prompts come from; see `prompt_sets`.
        seeds: Seeds of a fitting prompt.
        seed: First of all seeds; another number makes every clip anew.
        fit, select, evaluate: Prompts of each kind (asking for unsafe content, and benign) for each purpose.
        judge: Labels the clips that the direction is fitted on.
        evaluator: Judges beside it when candidates are measured. It must be another one.
        window: Share of the steps that is captured, and steered.
        dtype: Type of the stored vectors.
        live: The direction that serves now: a file, or `live` of the store; None: there is none.
        store: Where directions are published; None: the result stays in the output folder.
    """

    model: str
    entry: CatalogEntry | None = None
    task: str | None = None
    source: str | None = None
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    prompts: PromptsConfig
    seeds: int = Field(2, ge=1)
    seed: int = Field(0, ge=0)
    fit: int = Field(144, ge=2)
    select: int = Field(96, ge=4)
    evaluate: int = Field(432, ge=4)
    judge: JudgeConfig
    evaluator: JudgeConfig
    selection: Selection
    window: Window = Window(start=0.0, end=0.5)
    dtype: Literal["float32", "float16"] = "float32"
    live: str | None = None
    store: str | None = None
    loading: LoadingOptions = LoadingOptions()
    workers: Workers = Workers()

    @model_validator(mode="after")
    def _own_entry(self) -> "RecalibrateConfig":
        check_own(self.entry, self.model)
        return self

    @model_validator(mode="after")
    def _two_judges(self) -> "RecalibrateConfig":
        if self.judge == self.evaluator:
            raise ValueError("evaluator: must not be the judge that labels; a judge cannot check itself")
        if max(r.prompts for r in self.selection.rounds) > self.select:
            raise ValueError("selection.rounds: a round asks for more prompts than `select` has")
        if any(tried.end is not None and tried.end <= self.window.start for tried in self.selection.tried):
            raise ValueError("selection.tried: `end` must be behind the window's start")
        return self

    @classmethod
    def load(cls, path: str | Path) -> "RecalibrateConfig":
        """Read YAML. Raises ReinsError that names the words that are wrong."""
        try:
            return cls.model_validate(yaml.safe_load(Path(path).read_text()))
        except OSError as error:
            raise ReinsError(f"The configuration {path} cannot be read ({error.strerror}).") from error
        except (ValidationError, yaml.YAMLError) as error:
            raise ReinsError(f"The configuration {path} is refused: {error}") from error
