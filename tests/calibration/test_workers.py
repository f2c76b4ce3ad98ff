"""What a worker says of work that it cannot do."""

import pickle

import numpy as np

from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.controls import reversed_control
from reins_serve.calibration.trials import seeded
from reins_serve.calibration.workers import Ask, Generator
from reins_serve.steering.direction import Direction


def test_controls_alone_are_refused_in_words() -> None:
    config = RecalibrateConfig.load("directions/embedded/recalibrate.yaml")
    control = reversed_control(Direction.load("directions/embedded/setpoint.safetensors"), 1.0)
    ((prompt, seed),) = seeded(config, "select", "benign", 1)
    call = pickle.dumps((Ask(prompt, seed, "reversed", control.name, control.serving_strength),))
    worker = Generator(config, {control.name: control.data}, ())
    (answer,) = worker({"work": np.array([call], dtype=object)})["made"]
    assert "give a direction that steers" in pickle.loads(answer).message
