"""The small JSON documents on storage: strict, frozen, and refused with the file's name when they are not what they must be."""

from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from reins_serve.errors import ReinsError, StorageError

MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
MAX_TEXT = 2000

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, Field(pattern=MODEL_PATTERN)]
Text = Annotated[str, BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value),
                 Field(min_length=1, max_length=MAX_TEXT)]  # fmt: skip
Moment = AwareDatetime


class Document(BaseModel):
    """A document of storage: unknown and missing fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def encoded(self) -> bytes:
        """The document's bytes as they are stored."""
        return self.model_dump_json(indent=2).encode()

    @classmethod
    def decoded(cls, data: bytes, path: str) -> Self:
        """Read a document's bytes. Raises StorageError, which names `path`."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            details = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()[:3])
            raise StorageError(
                f"{path} is not what it must be ({details}). Nothing was changed, and what is serving goes on. "
                "`reins-serve directions history` shows what it said; restore it, or remove it and promote again."
            ) from error


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def require_said(**texts: str | None) -> None:
    """Refuse texts for the record that are empty or endless; None is one that was not given. Raises ReinsError."""
    for name, text in texts.items():
        if text is not None and not 0 < len(text.strip()) <= MAX_TEXT:
            raise ReinsError(
                f"`{name}` must be said, in at most {MAX_TEXT} characters: it is recorded.", code="invalid_value"
            )
