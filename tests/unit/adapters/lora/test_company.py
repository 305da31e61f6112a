"""A job with LoRAs has the same bytes alone and in any company, restarted, and wherever its LoRAs are on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import make, pixels, run
from tests.support.loras import ATTENTION, CONVOLUTIONS, LINEAR, catalogue_of, changes, write_peft
from tests.support.tiny import make_tiny

from latentfarm.adapter_kind import AdapterKind
from latentfarm.edit_fields import LoraUse
from latentfarm.errors import JobError
from latentfarm_worker.adapters.lora.part import Loras
from latentfarm_worker.engine.engine import Engine, Failed
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

#: name, rank, what it changes, and whether text encoders too
LORAS = [
    ("one", 4, ATTENTION, True),
    ("two", 16, LINEAR, False),
    ("three", 9, ATTENTION, True),
    ("four", 30, CONVOLUTIONS, False),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "sd1")


def load(folder: Path) -> Any:
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def loras(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, found = load(folder), tmp_path_factory.mktemp("loras")
    for seed, (name, rank, ends, text) in enumerate(LORAS):
        write_peft(found / f"{name}.safetensors", changes(family, rank=rank, seed=seed, ends=ends, text=text))
    return found


@pytest.fixture
def family(folder: Path, loras: Path, tmp_path: Path) -> Any:
    """A model that no LoRA has changed yet."""
    family = load(folder)
    family.use_catalogue(catalogue_of(loras, tmp_path))
    return family


WANTED = make(0, loras="one:0.7", num_inference_steps=3)
COMPANY = [
    make(1, loras="two:0.5"),
    make(2),
    make(3, loras="three,one:-0.4", num_inference_steps=2),
    make(4, loras="four:0.6", guidance_scale=1.0),
    make(5, loras="two:0.3,three:0.2", num_inference_steps=1),
]


def alone(family: Any, job: Any) -> bytes:
    engine = Engine(family, slots=3)
    engine.admit(job)
    return pixels(run(engine)[job.index])


def test_alone_and_in_company(folder: Path, family: Any, loras: Path, tmp_path: Path) -> None:
    expected = alone(family, WANTED)
    plain = alone(family, COMPANY[1])
    other = load(folder)
    other.use_catalogue(catalogue_of(loras, tmp_path))
    engine = Engine(other, slots=3)
    # the others come first, so its pages are elsewhere, and in stacks of more modules
    for job in COMPANY:
        engine.admit(job)
    done = {outcome.job.index: outcome for outcome in engine.step()}
    engine.admit(WANTED)
    done |= run(engine)
    assert pixels(done[0]) == expected
    assert pixels(done[2]) == plain, "an image without LoRAs is as if there were none"
    assert alone(family, WANTED.model_copy(update={"loras": ()})) != expected


def test_an_image_that_starts_again_has_the_same_bytes(family: Any) -> None:
    expected = alone(family, WANTED)
    engine = Engine(family, slots=3)
    engine.admit(WANTED)
    engine.admit(COMPANY[0])
    engine.step()
    engine.isolate(RuntimeError("a broken call"))
    assert pixels(run(engine)[0]) == expected


def test_a_lora_with_a_start_is_on_from_its_step_on(family: Any) -> None:
    def image(loras: Any) -> bytes:
        uses = tuple(LoraUse.model_validate(each) for each in loras)
        return alone(family, WANTED.model_copy(update={"loras": uses, "scheduler": "euler"}))

    # of 3 evaluations, 0.33 is before the second one, and 0.34 after it; "two" does not change the text
    assert image(["two:0.5"]) == image(["two:0.5@0"])
    assert image(["two:0.5@0.33"]) == image(["two:0.5@0.1"])
    found = [image(loras) for loras in (["two:0"], ["two:0.5@0.34"], ["two:0.5@0.33"], ["two:0.5"], ["one:0.5@0.33"])]
    assert len({*found}) == len(found)
    prepared = Engine(family, slots=1).prepare(make(0, loras="one:0.5@0.33,three"))
    assert [lora.scale for lora in prepared.prompts[0].loras] == [1.0], "text is encoded before the first step"


def test_a_lora_of_texts_alone_has_no_start(family: Any, tmp_path: Path) -> None:
    texts = {name: each for name, each in changes(family, rank=4, seed=9, ends=ATTENTION).items() if "text" in name}
    write_peft(tmp_path / "texts.safetensors", texts)
    family.use_catalogue(catalogue_of(tmp_path, tmp_path / "cache"))
    engine = Engine(family, slots=1)
    engine.prepare(make(0, loras="texts"))
    with pytest.raises(JobError, match=r"changes text encoders only, and .* remove its start 0\.5") as caught:
        engine.prepare(make(0, loras="texts:1@0.5"))
    assert caught.value.code == "adapter_mismatch"


def test_images_wait_for_places_on_the_device_and_all_end(family: Any) -> None:
    expected = {job.index: alone(family, job) for job in (WANTED, *COMPANY[:3])}
    family.loras.stacks.__init__(pages=3, device=family.device, dtype=family.dtype)
    engine = Engine(family, slots=3)
    for job in (WANTED, *COMPANY[:3]):
        engine.admit(job)
    engine.step()
    running = {image.job.index for image in engine._running}
    # one page, two, none; and three for the last, which waits
    assert running == {0, 1, 2}
    done = run(engine)
    assert {index: pixels(done[index]) for index in expected} == expected
    assert not any(family.loras.stacks._pins.values()), "nothing is kept"


def test_a_cancelled_image_keeps_no_place(family: Any) -> None:
    engine = Engine(family, slots=3)
    engine.admit(WANTED)
    engine.step()
    assert any(family.loras.stacks._pins.values())
    engine.cancel(WANTED.name)
    assert not any(family.loras.stacks._pins.values())


def test_a_job_of_more_ranks_than_fit_is_refused(family: Any) -> None:
    family.loras.stacks.__init__(pages=3, device=family.device, dtype=family.dtype)
    with pytest.raises(JobError, match="keep to 24") as caught:
        Engine(family, slots=1).prepare(make(0, loras="four"))
    assert caught.value.code == "adapter_limit"


def test_no_memory_for_loras_fails_their_job_only(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = alone(family, COMPANY[1])

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(family.loras.stacks, "write", fail)
    engine = Engine(family, slots=3)
    for job in (WANTED, COMPANY[1]):
        engine.admit(job)
    done: dict[int, Any] = {}
    while engine.busy:
        try:
            outcomes = engine.step()
        except JobError as error:
            outcomes = [*engine.isolate(error)]
        done |= {outcome.job.index: outcome for outcome in outcomes}
    assert isinstance(done[0], Failed)
    assert done[0].error.code == "oom"
    assert pixels(done[2]) == plain


def test_prompts_of_loras_for_texts_are_cached_apart(family: Any) -> None:
    engine = Engine(family, slots=3)
    same = {"prompt": "a word", "negative_prompt": "", "guidance_scale": 1.0}
    prompts = [
        engine.prepare(make(index, loras=loras, **same)).prompts[0]
        for index, loras in enumerate([(), "one", "one:0.5", "two", "one"])
    ]
    plain, one, half, two, again = prompts
    assert plain == two, "it changes no text encoder"
    assert one == again
    assert len({plain, one, half}) == 3
    texts = engine._texts.get([plain, one, half])
    states = [text["encoder_hidden_states"] for text in texts]
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    assert torch.equal(family.encode([plain])[0]["encoder_hidden_states"], states[0]), "the weights are as before"


def test_the_loras_that_wait_on_the_host_are_few(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentfarm_worker.adapters.lora.part._MAX_BYTES", 1)
    loras: Loras = family.loras
    hold = Engine(family, slots=1).prepare(make(0, loras="one")).holds
    for name, *_ in LORAS:
        loras._load(loras.catalogue.get(AdapterKind.LORA, name))
    assert len(loras._kept) == 1
    assert hold[0].text_loras[0].digest in loras._alive, "an image uses it"
