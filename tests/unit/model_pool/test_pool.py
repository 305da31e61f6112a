"""Models of one worker: one copy of equal weights, the least recently used leave, and images stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from tests.support.engines import make, pixels, run
from tests.support.sibling_models import make_siblings
from tests.support.tiny import make_tiny

from latentfarm.errors import ModelError, UnavailableError
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.model_pool import ModelPool, memory, weights_budget
from latentfarm_worker.model_pool.part_weights import digest_of, tensors_of
from latentfarm_worker.models import Family, load_family

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
JOB = make(0, num_inference_steps=3, scheduler="euler")


@pytest.fixture(scope="module")
def siblings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_siblings(tmp_path_factory.mktemp("siblings"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("other") / "other", seed=2)


class Loads:
    """Loads models, and records which parts were read from their files."""

    def __init__(self) -> None:
        self.read: list[set[str]] = []

    def of(self, folder: Path) -> partial[Family]:
        return partial(self._load, folder)

    def _load(self, folder: Path, loaded: Mapping[str, torch.nn.Module]) -> Family:
        family = load_family(folder, dtype=torch.float32, device=CPU, loaded=loaded)
        self.read.append({part for part in family.modules if part not in loaded})
        return family


@pytest.fixture
def loads() -> Loads:
    return Loads()


def bytes_of(family: Family, *parts: str) -> int:
    return sum(tensor.nbytes for part in parts for _, tensor in tensors_of(family.modules[part]))


def image(family: Family) -> bytes:
    engine = Engine(family, slots=2)
    engine.admit(JOB)
    return pixels(run(engine)[0])


def alone(folder: Path) -> bytes:
    return image(load_family(folder, dtype=torch.float32, device=CPU))


def test_equal_text_encoders_and_vaes_are_in_memory_once(siblings: tuple[Path, Path], loads: Loads) -> None:
    pool = ModelPool(1 << 40)
    first, second = (pool.add(name, loads.of(folder)) for name, folder in zip("ab", siblings, strict=True))
    for part in ("text_encoder", "vae"):
        assert digest_of(first.modules[part]) == digest_of(second.modules[part])
        places = [[tensor.data_ptr() for _, tensor in tensors_of(each.modules[part])] for each in (first, second)]
        assert places[0] == places[1]
    assert digest_of(first.modules["unet"]) != digest_of(second.modules["unet"])
    once = bytes_of(first, "text_encoder", "vae", "unet") + bytes_of(second, "unet")
    assert pool.bytes_here == once
    assert [image(first), image(second)] == [alone(folder) for folder in siblings]


def test_a_config_or_a_single_number_makes_weights_different(siblings: tuple[Path, Path]) -> None:
    family = load_family(siblings[0], dtype=torch.float32, device=CPU)
    vae = family.modules["vae"]
    digest, bias = digest_of(vae), vae.get_parameter("decoder.conv_in.bias")
    before = bias[0].item()
    bias[0] += 1e-3
    assert digest_of(vae) != digest
    bias[0] = before
    assert digest_of(vae) == digest
    vae.register_to_config(scaling_factor=0.5)  # type: ignore[operator]
    assert digest_of(vae) != digest


def test_the_least_recently_used_model_leaves_and_comes_back_with_the_same_images(
    siblings: tuple[Path, Path], other: Path, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sizes = ModelPool(1 << 40)
    family = sizes.add("a", loads.of(siblings[0]))
    unet, whole = bytes_of(family, "unet"), sizes.bytes_here
    # room for both siblings, whose encoders and VAE are shared, but for no third model
    pool = ModelPool(whole + unet)
    folders = {"a": siblings[0], "b": siblings[1], "c": other}
    families = {name: pool.add(name, loads.of(folder)) for name, folder in folders.items()}
    # the size of c was not known before it was there
    assert pool.here == ["c"]
    expected = {name: alone(folder) for name, folder in folders.items()}
    loads.read.clear()
    for name, here in (("a", ["a"]), ("b", ["a", "b"]), ("a", ["b", "a"]), ("c", ["c"]), ("b", ["b"])):
        seconds = pool.use(name)
        assert (pool.here, pool.bytes_here <= pool.budget) == (here, True)
        assert (seconds == 0) == (name == "a" and here == ["b", "a"])
        assert image(families[name]) == expected[name]
    everything = {"text_encoder", "vae", "unet"}
    # b finds the encoders and the VAE of a
    assert loads.read == [everything, {"unet"}, everything, everything]
    assert "model c is on the device after" in caplog.text
    assert "in place of b, a;" in caplog.text


def test_no_image_is_encoded_while_the_weights_are_not_there(
    siblings: tuple[Path, Path], other: Path, loads: Loads
) -> None:
    pool = ModelPool(10**12)
    families = [pool.add(folder.name, loads.of(folder)) for folder in siblings]
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    wanted = [family.encode_image(image).mean for family in families]
    pool.budget = 1
    pool.add(other.name, loads.of(other))
    for family in families:
        with pytest.raises(UnavailableError, match="weights have left"):
            family.encode_image(image)
    pool.use(siblings[0].name)
    # both have one copy of the VAE
    for family, mean in zip(families, wanted, strict=True):
        assert torch.equal(family.encode_image(image).mean, mean)


def test_weights_do_not_leave_while_an_image_is_encoded(siblings: tuple[Path, Path], other: Path, loads: Loads) -> None:
    pool = ModelPool(1)
    family = pool.add("a", loads.of(siblings[0]))
    left = Event()

    def leave() -> None:
        pool.add("b", loads.of(other))
        left.set()

    with family.vae_guard.lock:
        leaving = Thread(target=leave)
        leaving.start()
        # loading alone takes less
        assert not left.wait(2)
        assert family.modules["vae"].get_parameter("encoder.conv_in.weight").numel()
    leaving.join()
    assert left.is_set()


def test_what_has_left_takes_no_memory(siblings: tuple[Path, Path], other: Path, loads: Loads) -> None:
    pool = ModelPool(1)
    first = pool.add("a", loads.of(siblings[0]))
    pool.add("c", loads.of(other))
    assert bytes_of(first, *first.modules) == 0
    assert pool.here == ["c"]


def test_an_image_that_was_interrupted_goes_on_after_its_model_has_come_back(
    siblings: tuple[Path, Path], other: Path, loads: Loads
) -> None:
    pool = ModelPool(1)
    engine = Engine(pool.add("a", loads.of(siblings[0])), slots=2)
    left: list[str] = []
    pool.when_leaving("a", lambda: left.append("a"))
    engine.admit(JOB)
    assert not engine.step()
    family = pool.add("c", loads.of(other))
    assert left == ["a"]
    assert image(family) == alone(other)
    assert pool.use("a") > 0
    assert pixels(run(engine)[0]) == alone(siblings[0])


def test_files_that_have_changed_are_not_taken_for_the_model(tmp_path: Path, other: Path, loads: Loads) -> None:
    folder = make_tiny(tmp_path / "model", seed=3)
    pool = ModelPool(1)
    pool.add("a", loads.of(folder))
    pool.add("c", loads.of(other))
    file = next((folder / "unet").glob("*.safetensors"))
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    with pytest.raises(ModelError, match=r"its files have changed since the start; restart the worker"):
        pool.use("a")


def test_the_budget_is_the_setting_or_a_share_of_the_free_memory() -> None:
    assert weights_budget(CPU, 1.5) == 1_500_000_000
    assert 0 < weights_budget(CPU, 0) < 1 << 50


@pytest.mark.parametrize(("limit", "free"), [("1000", 1000 - 700 + 500), ("600", 400), ("100", 0), ("max", None)])
def test_a_container_has_what_its_limit_leaves_beside_files_that_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int | None
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    host = memory.free_bytes(CPU)
    files = {"memory.max": limit, "memory.current": "700", "memory.stat": "anon 100\ninactive_file 500"}
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    found = memory.free_bytes(CPU)
    assert found == free if free is not None else found > host // 2
