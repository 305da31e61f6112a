"""What a worker announces of a model, against what the loaded model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.engines import make
from tests.support.tiny import Kind, make_tiny

from latentfarm.errors import JobError
from latentfarm.job import Row
from latentfarm.submission.model_fit import misfits
from latentfarm_worker.engine.preparation import prepare
from latentfarm_worker.models import Family, load_family
from latentfarm_worker.models.facts import facts_of

pytestmark = pytest.mark.unit

#: pipeline, multiple of sides, whether it is a flow-matching model, tokens of a prompt, default steps and guidance
WANTED: dict[Kind, tuple[str, int, bool, int, tuple[int, float]]] = {
    "sd1": ("StableDiffusionPipeline", 8, False, 77, (25, 7.5)),
    "sdxl": ("StableDiffusionXLPipeline", 8, False, 77, (25, 7.5)),
    "sd3": ("StableDiffusion3Pipeline", 16, True, 256, (40, 4.5)),
    "flux": ("FluxPipeline", 16, True, 512, (28, 3.5)),
    "flux2-distilled": ("Flux2KleinPipeline", 16, True, 512, (4, 1.0)),
    "sd3-no-t5": ("StableDiffusion3Pipeline", 16, True, 77, (40, 4.5)),
    "chroma": ("ChromaPipeline", 16, True, 512, (35, 5.0)),
    "pixart": ("PixArtSigmaPipeline", 16, False, 300, (20, 4.5)),
    "zimage": ("ZImagePipeline", 16, True, 512, (50, 5.0)),
}


@pytest.fixture(scope="module", params=WANTED, ids=str)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Family]:
    kind: Kind = request.param
    folder = make_tiny(tmp_path_factory.mktemp("tiny") / kind, kind=kind)
    return kind, load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


def test_the_facts_are_those_of_the_family(loaded: tuple[Kind, Family]) -> None:
    kind, family = loaded
    pipeline, multiple, flow, tokens, (steps, guidance) = WANTED[kind]

    found = facts_of(family)

    assert (found.pipeline, found.flow) == (pipeline, flow)
    assert found.pixel_multiple % multiple == 0
    assert (found.num_inference_steps, found.guidance_scale) == (steps, guidance)
    assert found.max_prompt_tokens <= tokens
    assert found.native_width % found.pixel_multiple == found.native_height % found.pixel_multiple == 0
    assert family.model_digest.startswith(found.model_digest)
    assert len(found.model_digest) == 16
    takes_images = kind not in {"flux2-distilled", "pixart"}
    assert found.inputs == (("image", "mask_image") if takes_images else ())


def test_a_prompt_is_cut_where_the_facts_say(loaded: tuple[Kind, Family]) -> None:
    family = loaded[1]
    most = facts_of(family).max_prompt_tokens

    # a word has one token or two
    lengths = [family.tokenize(" ".join(["a"] * words)) for words in range(most // 2 - 16, most + 8)]

    assert [each.truncated for each in lengths] == [each.count > most for each in lengths]
    assert {each.truncated for each in lengths} == {False, True}


@pytest.mark.parametrize(
    "fields",
    [{"width": 72}, {"scheduler": "euler"}, {"scheduler": "flow_euler"}, {"scheduler": "dpm++2m"}, {"clip_skip": 9}],
)
def test_a_row_is_refused_at_submission_if_and_only_if_the_worker_would_refuse_it(
    loaded: tuple[Kind, Family], fields: dict[str, int | str]
) -> None:
    family = loaded[1]
    refused = bool(misfits(Row.model_validate({"prompt": "a", **fields}), facts_of(family)))

    try:
        prepare(family, make(0, **fields), "handle")
        failed = False
    except JobError:
        failed = True

    assert refused == failed


def test_the_licence_of_the_model_card_is_announced(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n")

    family = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))

    assert facts_of(family).licence == "creativeml-openrail-m"
