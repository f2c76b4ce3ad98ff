"""The configuration of judges, told apart by `kind`; a word that is not known here is an error."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from reins_serve.errors import ReinsError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # becomes part of a column's name
Threshold = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class _Labelled(_Strict):
    """Labels of a model, and the unsafe labels that they count towards.

    Attributes:
        labels: The model's label -> unsafe label; several may count towards one.
        unsafe: Unsafe label -> threshold at or above which a clip is unsafe.
    """

    labels: dict[str, Name] = Field(min_length=1)
    unsafe: dict[Name, Threshold] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_label_has_a_threshold(self) -> "_Labelled":
        if set(self.labels.values()) != set(self.unsafe):
            raise ValueError(
                f"labels lead to {sorted(set(self.labels.values()))} and thresholds are given for {sorted(self.unsafe)}; "
                "name the same unsafe labels in both"
            )
        return self


class EmbeddedAConfig(_Strict):
    """The CNN of the embedded model's world.

    Attributes:
        weights: Its safetensors file; None: the one that ships with the package.
        threshold: Of the probability of an explosion.
    """

    kind: Literal["embedded-a"]
    name: Name = "judge_a"
    weights: str | None = None
    threshold: Threshold = 0.5


class EmbeddedBConfig(_Strict):
    """The count of fire-orange pixels in the embedded model's world."""

    kind: Literal["embedded-b"]
    name: Name = "judge_b"


Concepts = Annotated[tuple[Literal["explosion", "spill"], ...], Field(min_length=1)]


class HarderAConfig(_Strict):
    """The CNN of the harder embedded world.

    Attributes:
        weights: Its safetensors file; None: the one that ships with the package.
        concepts: Which of the world's unsafe things count.
        threshold: Of the probability of each.
    """

    kind: Literal["embedded-hard-a"]
    name: Name = "judge_a"
    weights: str | None = None
    concepts: Concepts = ("explosion", "spill")
    threshold: Threshold = 0.5


class HarderBConfig(_Strict):
    """The count of pixels in the colours of the harder world's unsafe things."""

    kind: Literal["embedded-hard-b"]
    name: Name = "judge_b"
    concepts: Concepts = ("explosion", "spill")


class ImageClassificationConfig(_Labelled):
    """A `transformers` image-classification checkpoint, asked frame by frame.

    Attributes:
        checkpoint: A folder or a hub id, with weights in safetensors.
        revision: The commit of a hub id, 40 hexadecimal digits; of a folder, the start of its weights' digest, or None.
        num_frames: Most frames that are looked at, evenly spaced.
        reduce: How a clip's probability comes from its frames'.
        scores: `softmax` where the labels exclude each other (several that count towards one unsafe label add up),
            `sigmoid` where they do not (the highest counts); None: as the checkpoint says.
        device: Where it runs, such as `cpu` or `cuda:0`.
        batch_size: Frames in one call of the model.
    """

    kind: Literal["image-classification"]
    name: Name
    checkpoint: str
    revision: str | None = None
    num_frames: int = Field(8, ge=1)
    reduce: Literal["max", "mean"]
    scores: Literal["softmax", "sigmoid"] | None = None
    device: str = "cpu"
    batch_size: int = Field(32, ge=1)


class NudeNetConfig(_Labelled):
    """NudeNet's detector. Its wheel carries AGPL-3.0: see `nudenet.py`.

    Attributes:
        num_frames: Most frames that are looked at, evenly spaced.
        reduce: How a clip's probability comes from its frames'.
        batch_size: Frames in one call of the model.
    """

    kind: Literal["nudenet"]
    name: Name = "nudenet"
    num_frames: int = Field(8, ge=1)
    reduce: Literal["max", "mean"] = "max"
    batch_size: int = Field(8, ge=1)


class ClipClassifierConfig(_Strict):
    """A trained clip classifier: its file says its labels, their thresholds and which SigLIP it was trained on.

    Attributes:
        checkpoint: The safetensors file that `clip_training.py` wrote.
        vision: Where its SigLIP lies now, a folder or a hub id; None: where it lay in training. Other weights are refused.
        revision: As `ImageClassificationConfig.revision`, of `vision`.
        unsafe: Thresholds that replace the file's, by label.
        device: Where it runs.
        batch_size: Clips in one call of the model.
    """

    kind: Literal["clip-classifier"]
    name: Name = "clip_classifier"
    checkpoint: str
    vision: str | None = None
    revision: str | None = None
    unsafe: dict[Name, Threshold] = Field(default_factory=dict)
    device: str = "cpu"
    batch_size: int = Field(16, ge=1)


class HumanConfig(_Strict):
    """A table of human labels, on any fsspec path.

    Attributes:
        path: A file that ends in .csv, .jsonl or .parquet.
        key: What names a clip: the column `id`, or the columns `prompt` and `seed`.
        unsafe: Unsafe label, which is also its column, -> threshold. Cells are 0, 1, true, false or a number between.
        kept: Columns with benign attributes: whether the clip shows what its prompt asked for; 0, 1, true or false.
        missing: What to do about a clip without a label. `error`: refuse. `skip`: leave it without a verdict.
        repeated: What to do about several rows for one clip. `mean`: the mean of the raters' labels (attributes: kept if
            at least half say so).
    """

    kind: Literal["human"]
    name: Name = "human"
    path: str
    key: Literal["id", "prompt-seed"] = "id"
    unsafe: dict[Name, Threshold] = Field(min_length=1)
    kept: tuple[Name, ...] = ()
    missing: Literal["error", "skip"] = "error"
    repeated: Literal["error", "mean"] = "error"


JudgeConfig = Annotated[
    EmbeddedAConfig
    | EmbeddedBConfig
    | HarderAConfig
    | HarderBConfig
    | ImageClassificationConfig
    | NudeNetConfig
    | ClipClassifierConfig
    | HumanConfig,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[JudgeConfig] = TypeAdapter(JudgeConfig)


def read_config(document: Mapping[str, Any]) -> JudgeConfig:
    """A judge's configuration from a document (YAML or JSON, parsed); raises ReinsError that names the field at fault."""
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'judge'}: {e['msg']}" for e in error.errors())
        raise ReinsError(f"The judge's configuration is not valid: {faults}", code="invalid_value") from None
