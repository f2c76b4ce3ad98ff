"""Ports for servers that tests start."""

import random
import socket


def free_port() -> int:
    """A port that is free now, outside the ranges from which Ray's workers and the system take theirs."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("no free port between 20000 and 30000")
