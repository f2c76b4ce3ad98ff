"""The time inside functions, clocked in the very calls that it is a share of: what pairs on a shared machine cannot resolve."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

from benchmarks.paired import Ratio, ratio


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, which adds to `seconds` what each of its calls takes; put on a class, it binds as a method does."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)

    return call


@contextmanager
def clocked(methods: Sequence[tuple[type, str]]) -> Iterator[list[float]]:
    """Clock methods of classes, none of which calls another one, while the block lasts: the seconds of each call of theirs."""
    seconds: list[float] = []
    with ExitStack() as patches:
        for owner, name in methods:
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name), seconds)))
        yield seconds


def in_calls(
    make: Callable[[], Mapping[str, Callable[[], object]]], methods: Sequence[tuple[type, str]], rounds: int
) -> dict[str, Ratio]:
    """Calls to themselves without the time in some methods: every series once a round, after a round that does not count.

    Args:
        make: Makes the series; the methods are clocked already, so that what binds them binds the clocked ones.
    """
    with clocked(methods) as seconds:
        series = make()
        whole: dict[str, list[float]] = {name: [] for name in series}
        inside: dict[str, list[float]] = {name: [] for name in series}
        for number in range(1 + rounds):
            for name, call in series.items():
                seconds.clear()
                began = time.perf_counter()
                call()
                if number:
                    whole[name].append(time.perf_counter() - began)
                    inside[name].append(sum(seconds))
    return {name: to_rest(whole[name], inside[name]) for name in series}


def to_rest(whole: Sequence[float], inside: Sequence[float]) -> Ratio:
    """Calls to themselves without the time inside."""
    return ratio(whole, [total - part for total, part in zip(whole, inside, strict=True)])
