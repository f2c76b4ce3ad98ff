"""What a request may ask for, and what only the operator may do."""

import pytest

from reins_serve.errors import PolicyError, SteeringUnavailable
from reins_serve.steering.policy import (
    NamedPolicy,
    SteeringChoice,
    SteeringPolicy,
    SteeringRow,
    check_policy,
    resolve,
    takes_candidate,
)
from tests import tiny

PIPELINE = tiny.pipeline()
LIVE = {"live": tiny.direction(PIPELINE), "other": tiny.direction(PIPELINE, 1)}  # serving 0.5, max 2.0
POLICY = SteeringPolicy(
    floor=0.4, policies={"strict": NamedPolicy(strength=2.0), "probe": NamedPolicy(direction="other", admin_only=True)}
)


def test_a_request_that_says_nothing_gets_the_serving_strength() -> None:
    assert resolve(SteeringChoice(), POLICY, LIVE) == SteeringRow("live", 0.5, "default", basis="serving")


def test_the_floor_lifts_a_serving_strength_below_it() -> None:
    assert resolve(SteeringChoice(), SteeringPolicy(floor=0.8), LIVE).strength == 0.8


def test_without_a_floor_the_serving_strength_is_the_least() -> None:
    with pytest.raises(PolicyError, match=r"between 0\.5 and 2"):
        resolve(SteeringChoice(strength=0.45), SteeringPolicy(), LIVE)


@pytest.mark.parametrize("strength", [0.39, 2.01, -1.0, float("nan"), float("inf")])
def test_a_strength_outside_the_range_is_refused(strength: float) -> None:
    with pytest.raises(PolicyError) as error:
        resolve(SteeringChoice(strength=strength), POLICY, LIVE, admin=True)
    assert (error.value.code, error.value.param) == ("invalid_value", "steering.strength")


@pytest.mark.parametrize("choice", [SteeringChoice(policy="off"), SteeringChoice(strength=0)])
def test_turning_it_off_needs_the_admin_key_and_is_recorded(choice: SteeringChoice) -> None:
    with pytest.raises(PolicyError) as error:
        resolve(choice, POLICY, LIVE)
    assert error.value.code == "steering_required"
    row = resolve(choice, POLICY, LIVE, admin=True)
    assert (row.direction, row.reason) == (None, "admin")


def test_named_policies_are_offered_and_admin_ones_are_hidden() -> None:
    assert resolve(SteeringChoice(policy="strict"), POLICY, LIVE).strength == 2.0
    assert resolve(SteeringChoice(policy="probe"), POLICY, LIVE, admin=True).direction == "other"
    with pytest.raises(PolicyError) as error:
        resolve(SteeringChoice(policy="probe"), POLICY, LIVE)
    assert "strict" in str(error.value)
    assert "probe" not in str(error.value)


def test_a_missing_direction_fails_closed_unless_the_operator_says_otherwise() -> None:
    with pytest.raises(SteeringUnavailable):
        resolve(SteeringChoice(), SteeringPolicy(), {})
    row = resolve(SteeringChoice(), SteeringPolicy(required=False), {})
    assert (row.direction, row.reason) == (None, "no_direction")


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        (SteeringPolicy(floor=3), "floor"),
        (SteeringPolicy(policies={"x": NamedPolicy(direction="none")}), "not given"),
        (SteeringPolicy(policies={"x": NamedPolicy(strength=9)}), "max_strength"),
        (SteeringPolicy(policies={"x": NamedPolicy(strength=0.1)}), "weaker than the floor"),
        (SteeringPolicy(policies={"off": NamedPolicy()}), "built in"),
    ],
)
def test_a_policy_that_its_directions_cannot_carry_out_is_refused(policy: SteeringPolicy, word: str) -> None:
    with pytest.raises(PolicyError, match=word):
        check_policy(policy, LIVE)


def test_a_control_direction_is_never_live_nor_offered_to_everyone() -> None:
    control = tiny.direction(PIPELINE, role="control")
    with pytest.raises(PolicyError, match="control"):
        check_policy(SteeringPolicy(), {"live": control})
    with pytest.raises(PolicyError, match="admin_only"):
        check_policy(SteeringPolicy(policies={"c": NamedPolicy(direction="c")}), LIVE | {"c": control})
    check_policy(SteeringPolicy(policies={"c": NamedPolicy(direction="c", admin_only=True)}), LIVE | {"c": control})


@pytest.mark.parametrize(
    ("row", "strength"),
    [
        (resolve(SteeringChoice(), POLICY, LIVE), 1.0),
        (resolve(SteeringChoice(strength=2.0), POLICY, LIVE), 1.2),
        (resolve(SteeringChoice(strength=0.4), SteeringPolicy(floor=0.4), LIVE), 0.6),
        (SteeringRow("live", 9.0), 9.0),
    ],
    ids=["serving", "above", "below", "exact"],
)
def test_a_row_follows_the_direction_that_is_live_when_it_is_generated(row: SteeringRow, strength: float) -> None:
    later = tiny.direction(PIPELINE, 2, strength={"unit": "ref_norm", "serving": 1.0, "max": 1.2})
    assert row.settled(SteeringPolicy(floor=0.6), later).strength == strength


def test_a_candidate_must_suit_the_policy_as_a_live_direction_does() -> None:
    weak = tiny.direction(PIPELINE, 3, strength={"unit": "ref_norm", "serving": 0.1, "max": 0.2})
    with pytest.raises(PolicyError, match="above tiny's max_strength"):
        check_policy(SteeringPolicy(floor=0.4), {**LIVE, "candidate": weak})


def test_a_canary_takes_its_share_of_the_keys_and_keeps_them_as_it_grows() -> None:
    keys = [f"job-{number}" for number in range(4000)]
    small, large = ({key for key in keys if takes_candidate(key, share)} for share in (0.1, 0.3))
    assert small < large
    for taken, share in ((small, 0.1), (large, 0.3)):
        assert abs(len(taken) - share * 4000) < 4 * (4000 * share * (1 - share)) ** 0.5
    assert not any(takes_candidate(key, 0.0) for key in keys)
