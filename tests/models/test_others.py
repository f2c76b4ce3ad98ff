"""Every video denoiser of the installed diffusers has an entry in SPECS or OTHERS, and OTHERS says what is so."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers
import diffusers.models.transformers
import diffusers.models.unets
import diffusers.modular_pipelines
import diffusers.pipelines
import pytest
import torch
from diffusers import ModelMixin

from reins_serve.errors import ReinsError, SteeringNotApplied
from reins_serve.models.others import OTHERS, Refused, Works
from reins_serve.models.spec import SPECS, DenoiserSpec
from reins_serve.plugin import attach
from tests.zoo import others
from tests.zoo.case import Case
from tests.zoo.directions import direction
from tests.zoo.everything import entry

REFUSED = [name for name, other in OTHERS.items() if isinstance(other, Refused)]
PIPELINE = re.compile(r"^class \w+\([^)]*DiffusionPipeline", re.MULTILINE)
MAKES_VIDEO = re.compile(r"frames=|postprocess_video|OutputParam[^)]*\"videos?\"")
TAKES_FRAMES = re.compile(r"(\w+, ){4}\w+\s*=\s*\w+\.(shape|size\(\))|\b(num_)?frames\b")


def _modules(package: ModuleType) -> Iterator[tuple[str, str]]:
    """Name and source of every module of a package and of the packages in it."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.ispkg:
            folder, file = found.module_finder.path, found.name.rpartition(".")[2]  # type: ignore[union-attr]
            yield found.name, Path(folder, f"{file}.py").read_text()


def _denoisers(module: str) -> dict[str, type[ModelMixin]]:
    """The models in a module's namespace whose call takes a timestep. ControlNets do too, but only go with a denoiser."""
    return {
        kind.__name__: kind
        for kind in vars(importlib.import_module(module)).values()
        if inspect.isclass(kind)
        and issubclass(kind, ModelMixin)
        and not kind.__module__.startswith("diffusers.models.controlnets")
        and any("timestep" in parameter for parameter in inspect.signature(kind.forward).parameters)
    }


@cache
def video_denoisers() -> dict[str, str]:
    """The video denoisers of the installed diffusers, each with the module in which it was found.

    They are those that a pipeline which makes video, or a family of modular ones, has in its namespace; and those models of
    `diffusers.models` that take 5-D latents or frames.
    """
    found: dict[str, str] = {}
    for module, source in _modules(diffusers.pipelines):
        if PIPELINE.search(source) and MAKES_VIDEO.search(source):
            found |= dict.fromkeys(_denoisers(module), module)
    modular = dict(_modules(diffusers.modular_pipelines))
    families = {module.rpartition(".")[0] for module, source in modular.items() if MAKES_VIDEO.search(source)}
    for module in modular:
        if module.rpartition(".")[0] in families - {diffusers.modular_pipelines.__name__}:
            found |= dict.fromkeys(_denoisers(module), module)
    for package in (diffusers.models.transformers, diffusers.models.unets):
        for module, _ in _modules(package):
            for name, kind in _denoisers(module).items():
                if kind.__module__ == module and TAKES_FRAMES.search(inspect.getsource(kind.forward)):
                    found[name] = module
    return found


def test_every_video_denoiser_of_diffusers_is_known() -> None:
    unknown = {name: module for name, module in video_denoisers().items() if name not in {*SPECS, *OTHERS}}
    assert not unknown, (
        f"diffusers {diffusers.__version__} has video denoisers that nothing is known of: {unknown}. Build a tiny pipeline of "
        "each in tests/zoo, and give it an entry in SPECS; or say in reins_serve/models/others.py with which words one works "
        "(and add its case to tests/zoo/others.py), or why it is refused."
    )


def test_nothing_is_said_of_a_denoiser_that_diffusers_lacks_or_that_has_a_spec() -> None:
    gone = set(OTHERS) - set(video_denoisers())
    assert not gone, (
        f"diffusers {diffusers.__version__} has no video denoisers of these names: remove {gone} from OTHERS."
    )
    assert not set(OTHERS) & set(SPECS), "A class is in SPECS or in OTHERS."


def test_the_search_finds_every_denoiser_that_has_a_spec() -> None:
    assert {name for name in SPECS if hasattr(diffusers, name)} <= set(video_denoisers())


def test_every_spec_that_is_said_to_work_is_put_to_the_proof() -> None:
    works = {name for name, other in OTHERS.items() if isinstance(other, Works)}
    assert works == {type(case.build(0).transformer).__name__ for case in others.CASES}


@pytest.mark.parametrize("case", others.CASES, ids=lambda case: case.name)
def test_the_words_that_are_said_to_work_pass_the_proof(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = case.build(0)
    name = type(pipeline.transformer).__name__
    works = OTHERS[name]
    assert isinstance(works, Works)
    with pytest.raises(ReinsError, match=r"DenoiserSpec\(blocks=.* passes the start-up proof"):
        direction(pipeline)
    monkeypatch.setitem(SPECS, name, DenoiserSpec(**works.spec))
    made = {"live": direction(pipeline), "cond": direction(pipeline, 1, branches="cond", norm="channel")}
    proof = attach(pipeline, model=entry(case).name, directions=made).proof
    assert {name: p.applications for name, p in proof.items()} == {
        "live": 4,
        "cond": 2,
    }  # 2 of 3 steps, 2 branches or 1
    assert all(p.latent_change > 0 for p in proof.values())


class _Pipeline:
    """A pipeline of one denoiser that is no more than its class's name; it gives latents of two clips."""

    def __init__(self, name: str) -> None:
        denoiser = type(name, (torch.nn.Module,), {"config": {}})()
        setattr(self, "unet" if "UNet" in name else "transformer", denoiser)

    def __call__(self, prompt: list[str], output_type: str, max_sequence_length: int) -> Any:
        return SimpleNamespace(frames=torch.zeros(len(prompt), 1))


@pytest.mark.parametrize("name", REFUSED)
def test_attaching_to_a_refused_denoiser_says_why(name: str) -> None:
    refused = OTHERS[name]
    assert isinstance(refused, Refused)
    # Pipelines keep a UNet under another name than a transformer, and are refused for that.
    reason = "has no video transformer" if "UNet" in name else re.escape(refused.reason)
    with pytest.raises(ReinsError, match=reason):
        attach(_Pipeline(name), model=entry(others.FAR).name, directions={})


@pytest.mark.filterwarnings("ignore:flex_attention called")
def test_a_spec_does_not_make_a_refused_denoiser_steerable(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = others.FAR.build(0)
    spec = DenoiserSpec(("blocks",), guidance="batched", chunked=True)
    monkeypatch.setitem(SPECS, type(pipeline.transformer).__name__, spec)
    with pytest.raises(SteeringNotApplied):
        attach(pipeline, model=entry(others.FAR).name, directions={"live": direction(pipeline)})
