"""What a process pays before it does anything: those that load no model do without diffusers, which takes seconds to import."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["reins_serve.cli", "reins_serve.serving.gateway", "reins_serve.rollout.registry", "reins_serve.serving.config"],
)
def test_a_process_that_loads_no_model_does_without_diffusers(module: str) -> None:
    code = f"import sys, {module}; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_replica_imports_the_denoisers_of_its_own_model_and_no_others_before_it_loads_one() -> None:
    code = "import sys, reins_serve.serving.replica; sys.exit('diffusers.models.transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
