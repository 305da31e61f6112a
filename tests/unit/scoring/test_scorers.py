"""Which scores are recorded: of drafts, of named scorers, of failing ones, of installed packages and of CLIP."""

from __future__ import annotations

import logging
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.conftest import REPOSITORY
from tests.support.engines import make
from tests.support.tiny.clip_model import write_clip_model

from latentfarm.errors import JobError, ModelError
from latentfarm.settings import Settings
from latentfarm_worker.scoring.clip import ClipScorer
from latentfarm_worker.scoring.measures import contrast, phash, sharpness
from latentfarm_worker.scoring.plugins import load_plugins
from latentfarm_worker.scoring.scorers import Scorers, load_scorers, plain_text

pytestmark = pytest.mark.unit

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
IMAGE = Image.fromarray(PIXELS.numpy())
MEASURED = {"sharpness": sharpness(IMAGE), "contrast": contrast(IMAGE), "phash": phash(IMAGE)}

#: what a package's module has, by the name of its entry point
PLUGIN = """
calls = []

def length(text, image):
    calls.append((text, image.mode, image.size))
    return len(text)

class OnDevice:
    def __init__(self, settings):
        self.threshold = len(settings.model)

    def __call__(self, text, image):
        return self.threshold

class Broken:
    def __init__(self, settings):
        raise RuntimeError("no weights")

number = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Install a distribution with entry points ``name=object``, as pip does; return its module's name."""

    def install(package: str = "plugged", *, code: str = PLUGIN, **entries: str) -> str:
        site = tmp_path / package
        about = site / f"{package}-1.0.dist-info"
        about.mkdir(parents=True)
        (site / f"{package}.py").write_text(code)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {package}:{what}\n" for name, what in entries.items())
        (about / "entry_points.txt").write_text(f"[latentfarm.scorers]\n{lines}")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, package, raising=False)
        return package

    return install


@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("named", [(), ("contrast",), ("seven", "phash", "seven")])
def test_drafts_have_the_measures_and_images_what_they_name(*, draft: bool, named: tuple[str, ...]) -> None:
    scorers = Scorers({"seven": lambda _text, _image: 7})
    found = scorers.score(make(0, scorers=named), PIXELS, draft=draft)
    wanted = {name: score for name, score in {**MEASURED, "seven": 7.0}.items() if name in named}
    wanted = MEASURED | wanted if draft else wanted
    assert found == ({"scores": wanted} if wanted else {})


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), "sharp", None])
def test_a_scorer_that_fails_leaves_null_and_a_warning(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    def raises(text: str, image: Image.Image) -> float:
        image.paste((0, 0, 0), (0, 0, *image.size))
        raise ValueError(f"not {text}")

    scorers = Scorers({"raises": raises, "answers": lambda _text, _image: answer})
    job = make(0, scorers=("raises", "answers", "contrast"))
    with caplog.at_level(logging.WARNING):
        found = scorers.score(job, PIXELS)
    # the image that the first one painted black is its own
    assert found == {"scores": {"raises": None, "answers": None, "contrast": MEASURED["contrast"]}}
    first, second = [record.getMessage() for record in caplog.records]
    assert first == f"{job.name} has no score by raises: ValueError: not {job.prompt}"
    assert second.startswith(f"{job.name} has no score by answers: ")


def test_an_unknown_scorer_is_an_error_of_the_job() -> None:
    Scorers().require(make(0, scorers=("sharpness", "contrast", "phash")))
    with pytest.raises(JobError, match=r"scorer 'clip' is unknown on this worker, which has sharpness, contrast"):
        Scorers().require(make(0, scorers=("sharpness", "clip")))


def test_scorers_of_installed_packages_are_loaded_by_name(install: Callable[..., str]) -> None:
    module = install(length="length", device="OnDevice")
    scorers = load_scorers(Settings(model="abc"))
    assert scorers.names == ("sharpness", "contrast", "phash", "device", "length")
    job = make(0, prompt="a (red:1.3) fox", prompt_syntax="a1111", scorers=("length", "device"))
    assert scorers.score(job, PIXELS) == {"scores": {"length": len("a red fox"), "device": 3.0}}
    assert sys.modules[module].calls == [("a red fox", "RGB", (64, 48))]


def test_the_package_of_the_documentation_is_one(install: Callable[..., str]) -> None:
    page = (REPOSITORY / "docs" / "how-to" / "scorers.md").read_text()
    project, code = (re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("toml", "python"))
    [entries] = tomllib.loads(project[0])["project"]["entry-points"].values()
    module, *_ = code[0].removeprefix('"""').partition(".py")
    install(module, code=code[0], **{name: what.partition(":")[2] for name, what in entries.items()})
    assert {what.partition(":")[0] for what in entries.values()} == {module}
    scorers = load_scorers(Settings())
    colours = torch.tensor([[255, 0, 0], [90, 90, 90]], dtype=torch.uint8).repeat_interleave(64, 0).reshape(2, 64, 3)
    job = make(0, prompt="a night sky", scorers=tuple(entries))
    [found] = scorers.score(job, colours).values()
    # half of the pixels are of full saturation and of a luma of 76, the others grey of 90
    assert found == {"colour": 127.5, "night": pytest.approx(1 - (76 + 90) / 2 / 255)}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"mine": "absent"},
            r"scorer 'mine' of plugged cannot be loaded \(AttributeError: .*\); repair or uninst",
        ),
        ({"mine": "Broken"}, r"scorer 'mine' of plugged cannot be loaded \(RuntimeError: no weights\)"),
        ({"mine": "number"}, "scorer 'mine' of plugged is int, which cannot be called"),
        ({"a,b": "length"}, r"scorer 'a,b' of plugged cannot be loaded \(ValueError: is not a name"),
        ({"phash": "length"}, "an installed package has a scorer 'phash', the name of a built-in one"),
    ],
)
def test_a_scorer_that_cannot_be_used_is_an_error_at_the_start(
    install: Callable[..., str], entries: dict[str, str], message: str
) -> None:
    install(**entries)
    with pytest.raises(ModelError, match=message):
        load_scorers(Settings())


def test_two_packages_with_a_scorer_of_one_name_are_an_error(install: Callable[..., str]) -> None:
    install(mine="length")
    assert [*load_plugins(Settings())] == ["mine"]
    install("another", mine="length")
    with pytest.raises(ModelError, match="two installed packages have a scorer 'mine'"):
        load_plugins(Settings())


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [("a fox", "a fox"), ("a (red:1.3) [fox]", "a red fox"), ("one BREAK (two)", "one two"), (r"\(x\)", "(x)")],
)
def test_a_scorer_reads_a_prompt_without_weights(prompt: str, plain: str) -> None:
    assert plain_text(make(0, prompt=prompt, prompt_syntax="a1111")) == plain
    assert plain_text(make(0, prompt=prompt)) == prompt


# -- CLIP ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_model(tmp_path_factory.mktemp("scorer") / "clip")


def test_clip_scores_are_those_of_transformers(clip: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(clip, local_files_only=True).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(clip, local_files_only=True)
    scorers = load_scorers(Settings(clip_scorer=str(clip)))
    texts = ["a fox", "two red squares on a table", "word " * 100]
    found = [scorers.score(make(0, prompt=text, scorers=("clip",)), PIXELS)["scores"]["clip"] for text in texts]
    with torch.no_grad():
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        pixels = processor(IMAGE, return_tensors="pt").pixel_values
        scaled = model(**tokens, pixel_values=pixels).logits_per_image[0] / model.logit_scale.exp()
    assert found == pytest.approx(scaled.tolist(), abs=1e-4)
    # so that the test can fail
    assert len(set(found)) == 3


def test_a_folder_that_is_no_clip_model_is_an_error_with_a_cure(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights there"):
        load_scorers(Settings(clip_scorer=str(tmp_path)))
    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"is not a CLIP model .*visual_projection\.weight\); use a folder of"):
        ClipScorer.load(tmp_path)
