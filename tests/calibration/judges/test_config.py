"""Configurations are strict, say what is wrong, and load the judge that they name."""

import subprocess
import sys

import pytest

from reins_serve.calibration.judges import load, read_config
from reins_serve.errors import ReinsError

CLASSIFIER = {"kind": "image-classification", "name": "a", "checkpoint": "x", "reduce": "max"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"kind": "oracle"}, "oracle"),
        ({}, "kind"),
        ({"kind": "embedded-a", "treshold": 0.5}, "treshold"),
        ({"kind": "embedded-a", "threshold": 0}, "greater than 0"),
        ({"kind": "embedded-a", "threshold": 1.5}, "less than or equal to 1"),
        ({"kind": "embedded-a", "name": "a/b"}, "name"),
        ({**CLASSIFIER, "labels": {"fire": "unsafe"}, "unsafe": {"unsafe": 0.5, "other": 0.5}}, "same unsafe labels"),
        ({**CLASSIFIER, "labels": {}, "unsafe": {}}, "labels"),
        ({**CLASSIFIER, "labels": {"fire": "u"}, "unsafe": {"u": 0.5}, "reduce": "median"}, "reduce"),
        ({"kind": "human", "path": "x.csv", "unsafe": {"u": 0.5}, "missing": "safe"}, "missing"),
    ],
)
def test_a_configuration_that_is_not_known_is_refused(document, message):
    with pytest.raises(ReinsError, match=message) as caught:
        read_config(document)
    assert caught.value.code == "invalid_value"


@pytest.mark.parametrize("kind", ["embedded-a", "embedded-b"])
def test_load_makes_the_judge_of_its_kind(kind):
    judge = load(read_config({"kind": kind, "name": "mine"}))
    assert judge.name == "mine"
    assert set(judge.unsafe) == {"explosion"}
    assert judge.revision


def test_importing_the_package_imports_no_judge():
    code = (
        "import sys, reins_serve.calibration.judges as j; j.read_config({'kind': 'embedded-b'});"
        "found = {'torch', 'transformers', 'pyarrow', 'nudenet'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
