"""What a request may ask for, and the operator's floor. Turning steering off is for holders of the admin key, and is recorded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from reins_serve.errors import PolicyError, SteeringUnavailable
from reins_serve.steering.direction import Direction

LIVE = "live"
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
    """What one row of a generation gets: a direction by its name in the replica, or none, and why none."""

    direction: str | None
    strength: float
    policy: str = DEFAULT
    reason: str | None = None


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
    # A floor is in the unit of the live direction; for another one its own serving strength is the least.
    floor = policy.floor if named.direction == LIVE else None
    low, high = floor or direction.serving_strength, direction.max_strength
    if strength is None:
        return SteeringRow(named.direction, named.strength or max(low, direction.serving_strength), name)
    if not low <= strength <= high:
        raise PolicyError(
            f"steering.strength must lie between {low:g} and {high:g} for this model.", param="steering.strength"
        )
    return SteeringRow(named.direction, strength, name)


def check_policy(policy: SteeringPolicy, directions: Mapping[str, Direction]) -> None:
    """Refuse a policy that its directions cannot carry out. Raises PolicyError, for the operator to correct."""
    live = directions.get(LIVE)
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
