"""All cases, and what the catalogue would say of each."""

from reins_serve.models.catalog import CatalogEntry, register
from tests.zoo import (
    allegro,
    cogvideox,
    cosmos,
    easyanimate,
    helios,
    hunyuan,
    kandinsky,
    latte,
    ltx,
    mochi,
    motif,
    sana,
    skyreels,
    wan,
)
from tests.zoo.case import Case

_MODULES = (wan, skyreels, helios, cogvideox, ltx, allegro, mochi, latte, easyanimate)
_MODULES += (hunyuan, sana, kandinsky, cosmos, motif)
CASES: dict[str, Case] = {case.name: case for module in _MODULES for case in module.CASES}


def entry(case: Case) -> CatalogEntry:
    """The catalogue entry of a tiny pipeline, registered under the case's name: its smallest clip is its only one."""
    made = CatalogEntry(
        name=case.name,
        source="nowhere",
        pipelines={"image-to-video" if case.image else "text-to-video": "any"},
        fps=8,
        width=case.width,
        height=case.height,
        size_multiple=case.width,
        min_side=min(case.width, case.height),
        max_side=2 * case.width,
        fixed_size=case.fixed_size,
        num_frames=case.num_frames,
        max_frames=case.num_frames + 4,
        min_frames=case.num_frames,
        frame_multiple=4,
        num_inference_steps=4,
        guidance_scale=4.0,
        arguments=case.arguments,
        optional_image=not case.image,
        max_batch=None if case.max_batch > 1 else 1,
    )
    register(made)
    return made
