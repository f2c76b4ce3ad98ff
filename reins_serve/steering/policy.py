"""What a request may ask for, and the operator's floor. Turning steering off is for holders of the admin key, and is recorded."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from reins_serve.errors import PolicyError, SteeringUnavailable
from reins_serve.steering.direction import Direction

LIVE = "live"
CANDIDATE = "candidate"  # stands beside the live direction during a canary; no policy names it
OFF = "off"
DEFAULT = "default"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NamedPolicy(_Strict):
    """A steering that the operator offers by name: which direction, how strong (None: the file's serving strength)."""

    direction: str = LIVE
    strength: float | None = Field(None, gt=0, allow_inf_nan=False)
    admin_only: bool = False


class SteeringPolicy(_Strict):
    """What the operator allows for one model.

    Attributes:
        required: Without a valid direction no clip is made. False: clips are made, marked as unsteered and counted.
        floor: Least strength that a request may choose; None: the live direction's serving strength.
        policies: Steerings that a request may choose by name.
    """

    required: bool = True
    floor: float | None = Field(None, gt=0, allow_inf_nan=False)
    policies: dict[str, NamedPolicy] = Field(default_factory=dict)


class SteeringChoice(_Strict):
    """What a request asks for; both None is the operator's default."""

    policy: str | None = None
    strength: float | None = None


@dataclass(frozen=True)
class SteeringRow:
    """What one row of a generation gets: a direction by its name in the replica, or none, and why none.

    Attributes:
        basis: Where the strength comes from, should another direction be live by the time the row is generated: `exact` stays
            as it is; `serving` becomes the other's serving strength; `asked` is brought within the other's range.
        key: What decides whether a canary's candidate takes the row, such as the job's id; None leaves it to chance.
    """

    direction: str | None
    strength: float
    policy: str = DEFAULT
    reason: str | None = None
    basis: Literal["exact", "serving", "asked"] = "exact"
    key: str | None = None

    def settled(self, policy: SteeringPolicy, direction: Direction) -> "SteeringRow":
        """The row as the operator's policy lets this direction carry it out."""
        if self.basis == "exact" or self.direction is None:
            return self
        low, high = bounds(policy, self.direction, direction)
        strength = (
            max(low, direction.serving_strength) if self.basis == "serving" else min(max(self.strength, low), high)
        )
        return replace(self, strength=strength)


def bounds(policy: SteeringPolicy, name: str, direction: Direction) -> tuple[float, float]:
    """Least and greatest strength that a request may choose for a direction of this name.

    A floor is in the unit of the live direction; for another one its own serving strength is the least.
    """
    floor = policy.floor if name == LIVE else None
    return floor or direction.serving_strength, direction.max_strength


def takes_candidate(key: str, fraction: float) -> bool:
    """Whether a key falls into a canary's share: the same answer everywhere, and a larger share keeps whom a smaller one had."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < fraction * 2**64


def unsteered(reason: str, policy: str = OFF) -> SteeringRow:
    """The row of a clip that is not steered, with the reason that the record will carry."""
    return SteeringRow(None, 0.0, policy, reason)


def resolve(
    choice: SteeringChoice, policy: SteeringPolicy, directions: Mapping[str, Direction], admin: bool = False
) -> SteeringRow:
    """Turn a request's choice into a row, within the operator's policy.

    Raises:
        PolicyError: unknown policy, a strength outside the allowed range, or steering turned off without the admin key.
        SteeringUnavailable: the direction is missing and steering is required.
    """
    strength = choice.strength
    if strength is not None and (not math.isfinite(strength) or strength < 0):
        raise PolicyError("steering.strength must be a finite number that is not negative.", param="steering.strength")
    if choice.policy == OFF or strength == 0:
        if not admin:
            raise PolicyError(
                "Steering is required here; turning it off needs the admin key.",
                code="steering_required",
                param="steering",
            )
        return unsteered("admin")
    name = choice.policy or DEFAULT
    named = policy.policies.get(name, NamedPolicy() if name == DEFAULT else None)
    if named is None or (named.admin_only and not admin):
        offered = sorted({DEFAULT, *(n for n, p in policy.policies.items() if not p.admin_only)})
        raise PolicyError(
            f"There is no such steering policy; this model offers: {', '.join(offered)}.", param="steering.policy"
        )
    direction = directions.get(named.direction)
    if direction is None:
        if policy.required:
            raise SteeringUnavailable(
                f"The direction {named.direction!r} is not loaded, and this model serves nothing without one. Publish a direction."
            )
        return unsteered("no_direction", name)
    low, high = bounds(policy, named.direction, direction)
    if strength is None and named.strength is not None:
        return SteeringRow(named.direction, named.strength, name)
    if strength is None:
        return SteeringRow(named.direction, max(low, direction.serving_strength), name, basis="serving")
    if not low <= strength <= high:
        raise PolicyError(
            f"steering.strength must lie between {low:g} and {high:g} for this model.", param="steering.strength"
        )
    return SteeringRow(named.direction, strength, name, basis="asked")


def check_policy(policy: SteeringPolicy, directions: Mapping[str, Direction]) -> None:
    """Refuse a policy that its directions cannot carry out. Raises PolicyError, for the operator to correct."""
    live, candidate = directions.get(LIVE), directions.get(CANDIDATE)
    if candidate is not None:
        check_policy(policy, {**{n: d for n, d in directions.items() if n != CANDIDATE}, LIVE: candidate})
    if live is None and policy.required:
        raise SteeringUnavailable(
            "No direction is given as `live`, and steering is required. Give one, or say `required: false`."
        )
    if live is not None and live.meta.role != "steer":
        raise PolicyError(f"{live.name} is a control, made for measurements; it cannot be the live direction.")
    if live is not None and policy.floor is not None and policy.floor > live.max_strength:
        raise PolicyError(
            f"The floor {policy.floor:g} is above {live.name}'s max_strength {live.max_strength:g}. Lower it."
        )
    for name, named in policy.policies.items():
        direction = directions.get(named.direction)
        if name in (OFF, DEFAULT):
            raise PolicyError(f"The policy name {name!r} is built in; choose another.")
        if direction is None:
            raise PolicyError(f"The policy {name!r} names the direction {named.direction!r}, which is not given.")
        if direction.meta.role != "steer" and not named.admin_only:
            raise PolicyError(f"The policy {name!r} uses a control direction, so it must be `admin_only: true`.")
        if named.strength is None:
            continue
        floor = policy.floor or direction.serving_strength if named.direction == LIVE else 0.0
        if not named.admin_only and named.strength < floor:
            raise PolicyError(
                f"The policy {name!r} is weaker than the floor {floor:g}: raise it, or make it `admin_only`."
            )
        if named.strength > direction.max_strength:
            raise PolicyError(
                f"The policy {name!r} asks for {named.strength:g}, above {direction.name}'s max_strength "
                f"{direction.max_strength:g}. Lower it."
            )
