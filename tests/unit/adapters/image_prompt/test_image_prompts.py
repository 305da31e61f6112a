"""Jobs with IP-Adapters of different scales in one batch have the images of diffusers' pipelines, one by one."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.controlled import digest_of, noise_image
from tests.support.engines import make, pixels, run
from tests.support.pipelines import call, difference, open_pipeline, render
from tests.support.tiny import NATIVE, make_tiny
from tests.support.tiny.ip_adapters import make_image_encoder, make_ip_adapter

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.recent_cache import RecentCache
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.job_inputs import JobInputs
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
#: of other sides than the model's
FIRST, SECOND = noise_image(1, width=96, height=64), noise_image(2, width=40, height=88)


class Model(NamedTuple):
    """A model, its pipeline, and the folder with the adapters ``plain`` and ``plus``."""

    family: Any
    base: Any
    adapters: Path


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    root = tmp_path_factory.mktemp(request.param)
    folder = make_tiny(root / "model", kind=request.param)
    for seed, name in enumerate(("plain", "plus")):
        make_ip_adapter(root / "adapters" / f"{name}.safetensors", folder, seed=seed, plus=name == "plus")
    make_image_encoder(root / "adapters" / "image_encoder")
    family: Any = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    family.use_catalogue(catalogue(root / "adapters", root / "cache"))
    return Model(family, open_pipeline(folder), root / "adapters")


def catalogue(folder: Path, cache: Path) -> Any:
    from latentfarm_worker.adapters.catalogue import open_catalogue

    named = ",".join(f"{file.stem}={file}" for file in sorted(folder.glob("*.safetensors")))
    return open_catalogue(named, cache=cache, max_bytes=10**9, open_store=lambda _: None)  # type: ignore[arg-type, return-value]


def job(index: int, *prompts: tuple[str, np.ndarray[Any, Any], float], **fields: Any) -> Job:
    wanted: dict[str, Any] = {"width": NATIVE, "height": NATIVE, "guidance_scale": 5.0, "num_inference_steps": 2}
    if prompts:
        wanted |= {
            "ip_adapter": [name for name, _, _ in prompts],
            "ip_adapter_image": [digest_of(image) for _, image, _ in prompts],
            "ip_adapter_scale": [scale for _, _, scale in prompts],
        }
    return make(index, **{**wanted, **fields})


PROMPTS: list[tuple[tuple[str, np.ndarray[Any, Any], float], ...]] = [
    (),
    (("plain", FIRST, 1.0),),
    (("plain", FIRST, 0.3),),
    (("plus", SECOND, 0.6),),
    (("plain", FIRST, 0.5), ("plus", SECOND, 0.8)),
    (),
]
#: one with a prompt, and one without, have one row
JOBS = [job(index, *each, guidance_scale=1.0 if index in {3, 5} else 5.0) for index, each in enumerate(PROMPTS)]


def prepared(engine: Engine, index: int) -> ImageState:
    images = tuple(torch.from_numpy(image.copy()) for _, image, _ in PROMPTS[index])
    return engine.prepare(JOBS[index], inputs=JobInputs(image_prompts=images))


def by_pipeline(model: Model, index: int) -> np.ndarray[Any, Any]:
    prompts = PROMPTS[index]
    if not prompts:
        return call(model.base, JOBS[index])
    pipe = model.base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_ip_adapter(
            str(model.adapters),
            subfolder="",
            weight_name=[f"{name}.safetensors" for name, _, _ in prompts],
            image_encoder_folder="image_encoder",
        )
        pipe.set_ip_adapter_scale([scale for _, _, scale in prompts])
        image = call(pipe, JOBS[index], ip_adapter_image=[Image.fromarray(image) for _, image, _ in prompts])
        pipe.unload_ip_adapter()
    return image


def test_each_row_has_its_own_scale_and_the_image_of_the_pipeline(model: Model) -> None:
    engine = Engine(model.family, slots=3)
    done = render(engine, [prepared(engine, index) for index in range(len(JOBS))])
    plain = call(model.base, JOBS[1])
    found = {index: difference(by_pipeline(model, index), done[index]) for index in range(len(JOBS))}
    assert max(found.values()) <= BOUND, found
    assert np.abs(plain - done[1].pixels.numpy()).mean() > 1, "a prompt without effect would prove nothing"
    same_seed = by_pipeline(model, 2)
    assert np.abs(same_seed - done[2].pixels.numpy()).max() <= BOUND


def test_an_image_has_the_same_bytes_alone_and_in_company(model: Model) -> None:
    engine = Engine(model.family, slots=3)
    together = render(engine, [prepared(engine, index) for index in (4, 0, 2, 1, 5, 3)])
    for index in range(len(JOBS)):
        engine = Engine(model.family, slots=3)
        engine.admit(prepared(engine, index))
        assert pixels(run(engine)[index]) == pixels(together[index]), index


def test_an_image_is_encoded_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    part = model.family.image_prompts
    # those of the tests before
    monkeypatch.setattr(part, "_tokens", RecentCache(8))
    encoded, encode = [], part._encode

    def count(*inputs: Any) -> Any:
        encoded.append(inputs)
        return encode(*inputs)

    monkeypatch.setattr(part, "_encode", count)
    engine = Engine(model.family, slots=3)
    render(engine, [prepared(engine, index) for index in (1, 2, 4)])
    assert len(encoded) == 2, "the first image by one adapter, the second by the other"


def test_adapters_that_cannot_be_used_are_refused(model: Model, tmp_path: Path) -> None:
    engine = Engine(model.family, slots=1)
    other_kind = "sdxl" if model.base.__class__.__name__ == "StableDiffusionPipeline" else "sd1"
    other = make_tiny(tmp_path / "other", kind=other_kind)  # type: ignore[arg-type]
    make_ip_adapter(tmp_path / "with" / "foreign.safetensors", other)
    shutil.copytree(model.adapters / "image_encoder", tmp_path / "with" / "image_encoder")
    (tmp_path / "without").mkdir()
    shutil.copy(model.adapters / "plain.safetensors", tmp_path / "without" / "lonely.safetensors")
    before = model.family.image_prompts.catalogue
    wanted = {
        "foreign": (tmp_path / "with", "adapter_mismatch", "another base"),
        "lonely": (tmp_path / "without", "adapter_invalid", "no image encoder"),
        "unknown": (tmp_path / "with", "adapter_unknown", "foreign"),
    }
    inputs = JobInputs(image_prompts=(torch.from_numpy(FIRST.copy()),))
    for name, (folder, code, words) in wanted.items():
        model.family.image_prompts.catalogue = catalogue(folder, tmp_path / "cache")
        with pytest.raises(JobError, match=words) as caught:
            engine.prepare(job(0, (name, FIRST, 1.0)), inputs=inputs)
        assert caught.value.code == code
    model.family.image_prompts.catalogue = before


def test_a_model_without_cross_attention_refuses_image_prompts(tmp_path: Path) -> None:
    family = load_family(make_tiny(tmp_path / "flux", kind="flux"), dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(JobError, match="take no IP-Adapter") as caught:
        Engine(family, slots=1).prepare(job(0, ("plain", FIRST, 1.0)))
    assert caught.value.code == "adapter_mismatch"
