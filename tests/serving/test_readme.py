"""The deployment that the README shows runs as it stands there."""

import re
from pathlib import Path

import httpx
import pytest
from ray import serve

README = Path(__file__).parents[2] / "README.md"


def example() -> str:
    """The README's only Python block."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return code


def test_it_is_short() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 25


def test_the_readmes_deployment_serves_a_proved_clip(
    http: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "readme_example.py").write_text(example())
    monkeypatch.syspath_prepend(str(tmp_path))
    import readme_example
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(readme_example)  # the replica's process does not have this folder on its path
    serve.run(readme_example.app, name="readme", route_prefix="/readme")
    try:
        answer = http.get("/readme", params={"prompt": "a red square moving left at night with an explosion"}).json()
    finally:
        serve.delete("readme")
    assert answer["frames"] == 8
    assert answer["steering"]["proved"]
    assert answer["steering"]["applied"] == answer["steering"]["planned"] == 5
