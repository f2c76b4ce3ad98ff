"""The Dockerfile. It cannot be built where there is no builder; it is linted, and held against the repository and the manifests."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.k8s import consistency
from tests.k8s.manifests import K8S, OVERLAYS, render, walk

REPOSITORY = K8S.parent
DOCKERFILE = K8S / "Dockerfile"
SECRET = re.compile(r"(?i)\b(ARG|ENV)\b.*(token|password|secret|credential|api_?key)")


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction and what follows it, without comments and with its lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines.splitlines() if line.strip())]


def faults(text: str) -> list[str]:
    """What is wrong with a Dockerfile, as far as these rules see."""
    given, found = instructions(text), []
    stages = [rest for name, rest in given if name == "FROM"]
    if len(stages) < 2 or not all(stage.startswith("${BASE_IMAGE}") for stage in stages):
        found.append("it is built in two stages on one base, which is an argument")
    users = [
        rest for name, rest in given[max(i for i, (name, _) in enumerate(given) if name == "FROM") :] if name == "USER"
    ]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("the last user is not a number above 0, which Kubernetes could check")
    found += [f"a secret in the image: {name} {rest}" for name, rest in given if SECRET.search(f"{name} {rest}")]
    for _, rest in (one for one in given if one[0] == "COPY" and "--from" not in one[1]):
        found += [f"there is no {source} to copy" for source in rest.split()[:-1] if not (REPOSITORY / source).exists()]
    return found


def lint(text: str) -> str:
    """What hadolint says."""
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: it is part of the extra `dev`")
    return subprocess.run([program, "--no-color", "-"], input=text, capture_output=True, text=True, check=False).stdout


def test_nothing_is_wrong() -> None:
    text = DOCKERFILE.read_text()
    assert faults(text) == []
    assert lint(text) == ""


@pytest.mark.parametrize(
    ("what", "by", "expected"),
    [
        ("USER 10001:10001", "USER root", "last user"),
        ("USER 10001:10001", "ENV HF_TOKEN=abc\nUSER 10001:10001", "a secret in the image"),
        ("COPY directions ", "COPY direction ", "no direction to copy"),
        ("FROM ${BASE_IMAGE}\n", "FROM ubuntu:24.04\n", "on one base"),
    ],
)
def test_a_planted_fault_is_found(what: str, by: str, expected: str) -> None:
    text = DOCKERFILE.read_text()
    assert what in text
    assert any(expected in fault for fault in faults(text.replace(what, by)))


def test_the_linter_finds_a_planted_fault() -> None:
    assert "DL3002" in lint(DOCKERFILE.read_text().replace("USER 10001:10001", "USER root"))
    assert "DL3009" in lint(DOCKERFILE.read_text().replace("rm -rf /var/lib/apt/lists/*", "true"))


def test_the_build_gets_every_file_that_it_copies_and_little_else() -> None:
    allowed = {line[1:] for line in (K8S / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        rest.split()[:-1]
        for name, rest in instructions(DOCKERFILE.read_text())
        if name == "COPY" and "--from" not in rest
    ]
    assert {source for sources in copied for source in sources} == allowed


def test_the_image_has_what_the_manifests_ask_for() -> None:
    text = DOCKERFILE.read_text()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = set(re.search(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)[1].split(","))  # type: ignore[index]
    assert extras <= project["optional-dependencies"].keys()
    (ray,) = (
        line.removeprefix("ray==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    )
    (user,) = (rest for name, rest in instructions(text) if name == "USER")
    for overlay in OVERLAYS:
        given = render(overlay)
        assert given.cluster["rayVersion"] == ray
        for pod in given.pods:
            context = pod.spec["securityContext"]
            assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
        config = consistency.config(given)
        assert not config.database_url.startswith("postgresql") or "postgres" in extras
        assert not config.output_dir.startswith("s3://") or "s3" in extras
        texts = [value for _, value in walk(given.objects) if isinstance(value, str)]
        named = {path for text in texts for path in re.findall(rf"{consistency.IMAGE_FILES}/([\w./-]+)", text)}
        assert all((REPOSITORY / path).is_file() for path in named)
    assert f"COPY directions {consistency.IMAGE_FILES}/directions" in text
