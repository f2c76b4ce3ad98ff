"""The errors of reins_serve: each message says what is wrong and what to do, and never carries a traceback or a secret."""


class ReinsError(Exception):
    """Base of every error that reins_serve raises on purpose.

    Attributes:
        code: Stable word for programs (the API's `error.code`).
        param: Name of the request's field at fault, where there is one.
    """

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.param = param


class DirectionError(ReinsError):
    """A direction file is malformed, or does not belong to the model it was given to."""

    code = "direction_invalid"


class SignatureError(DirectionError):
    """A direction file is not signed by a key that is trusted here, or not by the one that its signature names."""


class SteeringUnavailable(ReinsError):
    """Steering is required and there is no valid direction, or no generation was opened: nothing may be generated."""

    code = "steering_unavailable"


class SteeringNotApplied(ReinsError):
    """The device's counter disagrees with the plan: the clip must not be used."""

    code = "steering_not_applied"


class PolicyError(ReinsError):
    """A request asks for a steering that the operator's policy does not allow."""

    code = "invalid_value"


class UnsupportedRequest(ReinsError):
    """A model cannot make the clip that was asked for; the message names the nearest that it can."""

    code = "invalid_value"


class GenerationCancelled(ReinsError):
    """A generation was stopped between two denoising steps, on request."""

    code = "cancelled"


class JudgeError(ReinsError):
    """A judge gave no usable verdict: it failed, left out a label, or answered with something that is no probability."""

    code = "judge_failed"


class StorageError(ReinsError):
    """Durable storage cannot be read or written, or holds something that is missing or damaged; nothing was changed."""

    code = "storage_failed"


class ConflictError(ReinsError):
    """Another writer was first: read the pointer again, then decide again."""

    code = "conflict"


class RegistryUnavailable(ReinsError):
    """The registry of directions does not answer: what serves goes on, and changes must wait or go to storage directly."""

    code = "registry_unavailable"


class StoreUnavailable(ReinsError):
    """The database of jobs does not answer. What it has accepted is kept; ask again."""

    code = "not_ready"
