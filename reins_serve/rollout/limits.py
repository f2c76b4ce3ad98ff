"""What a candidate must show before its canary ends by itself: the limits that a person declares with it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from reins_serve.errors import ReinsError
from reins_serve.rollout.document import Document, Moment, Text, now, require_said

DAY_S = 86_400.0

Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Score = Annotated[float, Field(allow_inf_nan=False)]


class CanaryLimits(Document):
    """The limits of one canary.

    Attributes:
        min_generations: Generations of the candidate before which it is never promoted.
        max_failed_rate: Most of the candidate's generations that may fail.
        max_failed_excess: By how much its rate of failures may lie above the live version's.
        min_score, max_score: Between what its mean score must lie (0: the unsafe class's mean, 1: the safe one's).
        max_unsafe_rate: Most of its judged clips that may be unsafe.
        deadline_s: After this time a canary that has not shown all that ends without a promotion.
    """

    min_generations: int = Field(ge=1)
    max_failed_rate: Rate | None = None
    max_failed_excess: Rate | None = None
    min_score: Score | None = None
    max_score: Score | None = None
    max_unsafe_rate: Rate | None = None
    deadline_s: float = Field(DAY_S, gt=0, allow_inf_nan=False, le=365 * DAY_S)

    @model_validator(mode="after")
    def _says_enough(self) -> Self:
        if self.max_failed_rate is None and self.max_failed_excess is None:
            raise ValueError("say how many may fail: max_failed_rate, max_failed_excess, or both")
        if self.min_score is not None and self.max_score is not None and self.min_score >= self.max_score:
            raise ValueError("min_score must lie below max_score")
        return self

    @classmethod
    def of(cls, declared: "CanaryLimits | Mapping[str, Any]") -> "CanaryLimits":
        """From what a caller declares. Raises ReinsError that names what is wrong."""
        try:
            return cls.model_validate(declared)
        except ValidationError as error:
            details = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'limits'}: {e['msg']}" for e in error.errors()[:3])
            raise ReinsError(
                f"The limits of the automatic canary are refused: {details}.", code="invalid_value"
            ) from error


class Automatic(Document):
    """An automatic canary as the pointer keeps it; `override` is the reason that the canary itself was given for a failed gate."""

    format: Literal["reins.automatic/1"] = "reins.automatic/1"
    limits: CanaryLimits
    deadline: Moment
    override: Text | None = None

    @classmethod
    def of(cls, limits: CanaryLimits, override: str | None) -> "Automatic":
        """With the time from now on. Raises ReinsError."""
        require_said(override=override)
        return cls(limits=limits, deadline=now() + timedelta(seconds=limits.deadline_s), override=override)
