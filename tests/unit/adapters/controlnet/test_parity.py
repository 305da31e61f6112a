"""Jobs with ControlNets, mixed with others in one run, have the images of diffusers' pipelines and their own bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.support.controlled import ControlledPipelines, catalogue_of, job, noise_image, prepared
from tests.support.engines import pixels
from tests.support.pipelines import call, difference, open_pipeline, render
from tests.support.tiny import Kind, make_tiny
from tests.support.tiny.controlnets import make_controlnet

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
KINDS: list[Kind] = ["sd1", "sdxl", "sd3", "flux", "schnell"]
FIRST, SECOND = noise_image(1), noise_image(2)


class Model(NamedTuple):
    """A model with the nets ``a`` and ``b``."""

    family: Any
    base: Any
    nets: ControlledPipelines


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    root = tmp_path_factory.mktemp(request.param)
    folder = make_tiny(root / "model", kind=request.param)
    nets = {alias: make_controlnet(root / "nets" / alias, folder, seed=seed) for seed, alias in enumerate("ab", 1)}
    family = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    family.adapter_parts[0].catalogue = catalogue_of(root / "nets", root / "cache")  # type: ignore[attr-defined]
    base = open_pipeline(folder)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "sd3":
            # its pipeline samples from torch's global generator, we take the mean
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mode())
        yield Model(family, base, ControlledPipelines(base, nets))


#: text alone; one net; the same with another scale; on by step; two nets, each on for some steps; edges
JOBS: list[tuple[Job, list[np.ndarray[Any, Any]]]] = [
    (job(0), []),
    (job(1, "a", images=[FIRST]), [FIRST]),
    (job(2, "a", images=[SECOND], controlnet_conditioning_scale=0.4, num_inference_steps=5), [SECOND]),
    (job(3, "a", images=[FIRST], control_guidance_start=0.3, num_inference_steps=4), [FIRST]),
    (
        job(
            4,
            "a",
            "b",
            images=[FIRST, SECOND],
            controlnet_conditioning_scale=[0.7, 1.2],
            control_guidance_start=[0.0, 0.5],
            control_guidance_end=[0.5, 1.0],
            num_inference_steps=4,
        ),
        [FIRST, SECOND],
    ),
    (job(5, "b", images=[FIRST], control_preprocessor="canny"), [FIRST]),
    (job(6), []),
]


def render_together(model: Model, chosen: list[int]) -> dict[int, Any]:
    engine = Engine(model.family, slots=3)
    return render(engine, [prepared(engine, *JOBS[at]) for at in chosen])


def test_nets_give_the_images_of_their_pipelines_mixed_with_text_alone(model: Model) -> None:
    done = render_together(model, [*range(len(JOBS))])
    found = {}
    for wanted, images in JOBS:
        by_text = call(model.base, wanted)
        expected = model.nets.render(wanted, images) if images else by_text
        found[wanted.index] = difference(expected, done[wanted.index])
        if images:
            assert np.abs(expected - by_text).mean() > 1, "a net without effect would prove nothing"
    assert max(found.values()) <= BOUND, found


def test_an_image_has_the_same_bytes_alone_and_in_company(model: Model) -> None:
    together = render_together(model, [4, 0, 2, 1, 6, 3, 5])
    for wanted, _ in JOBS:
        [alone] = render_together(model, [wanted.index]).values()
        assert pixels(alone) == pixels(together[wanted.index]), wanted


def test_an_image_that_begins_again_has_the_same_bytes(model: Model) -> None:
    expected = render_together(model, [4])[4]
    engine = Engine(model.family, slots=2)
    engine.admit(prepared(engine, *JOBS[4]))
    engine.step()
    engine.isolate(RuntimeError("a call broke"))
    again = render(engine, [])
    assert pixels(again[4]) == pixels(expected)


def test_a_net_with_scale_0_or_never_on_changes_nothing(model: Model) -> None:
    engine = Engine(model.family, slots=2)
    off = job(0, "a", images=[FIRST], controlnet_conditioning_scale=0.0)
    never = job(1, "a", images=[FIRST], seed=0, prompt="image 0", control_guidance_start=0.9)
    plain = render(engine, [job(0, seed=off.seed)])[0].pixels.int()
    done = render(engine, [prepared(engine, wanted, [FIRST]) for wanted in (off, never)])
    if type(model.base).__name__ == "FluxPipeline":
        # the pipeline draws the sample of the control image first, so the noise is another
        assert torch.equal(done[0].pixels, done[1].pixels)
        return
    # the sums of a call with residuals of 0 are those without
    assert (done[0].pixels.int() - plain).abs().max() <= BOUND
    assert (done[1].pixels.int() - plain).abs().max() <= BOUND
