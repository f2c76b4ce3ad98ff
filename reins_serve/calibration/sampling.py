"""What a replica samples of its traffic and judges of its clips: the configuration alone, which every process reads."""

from pydantic import BaseModel, ConfigDict, Field

from reins_serve.calibration.judges import JudgeConfig


class SamplingConfig(BaseModel):
    """What is sampled, and where it goes.

    Attributes:
        fraction: Share of the completed requests.
        url: Folder or fsspec URL of the activation store.
        blocks: Blocks to capture; None: the middle one of each denoiser.
        judge: Labels the un-steered clip at once; None: the labels stay empty, for people to fill in by clip id.
        keep_prompts: Also store the prompt's text; by default only its SHA-256.
        flush: Clips of a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fraction: float = Field(gt=0, le=1)
    url: str
    blocks: tuple[int, ...] | None = None
    judge: JudgeConfig | None = None
    keep_prompts: bool = False
    flush: int = Field(32, ge=1)


class JudgingConfig(BaseModel):
    """Which of the clips that a replica delivers a judge looks at, so that the versions of a canary can be compared.

    Attributes:
        fraction: Share of the clips.
        judge: It runs beside the model, in a thread of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fraction: float = Field(gt=0, le=1)
    judge: JudgeConfig
