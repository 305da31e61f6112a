"""The devices of --devices, the environment of each worker, and the address of its metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.errors import InputError
from latentfarm.monitoring.listen_address import VARIABLE, nth_address, parse_address
from latentfarm_worker.supervise.devices import parse_devices

pytestmark = pytest.mark.unit


NO_METRICS = {VARIABLE: ""}


def test_all_means_the_visible_gpus() -> None:
    found = parse_devices("all", {"CUDA_VISIBLE_DEVICES": "2, GPU-5f3c"})
    assert [device.environment for device in found] == [
        {"CUDA_VISIBLE_DEVICES": "2", **NO_METRICS},
        {"CUDA_VISIBLE_DEVICES": "GPU-5f3c", **NO_METRICS},
    ]


def test_all_without_a_gpu_is_refused_with_the_cure() -> None:
    with pytest.raises(InputError, match="--devices cpu:1"):
        parse_devices("all", {"CUDA_VISIBLE_DEVICES": ""})


def test_workers_on_the_cpu_share_its_cores_and_see_no_gpu() -> None:
    found = parse_devices("cpu:3", {}, cores=8)
    assert [device.name for device in found] == ["cpu 0", "cpu 1", "cpu 2"]
    assert [dict(device.environment) for device in found] == [
        {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2", **NO_METRICS}
    ] * 3
    [alone] = parse_devices("cpu:1", {}, cores=1)
    assert alone.environment["OMP_NUM_THREADS"] == "1"


def test_each_worker_serves_its_metrics_at_the_next_port() -> None:
    found = parse_devices("0,3", {VARIABLE: "127.0.0.1:9464"})
    assert [device.environment[VARIABLE] for device in found] == ["127.0.0.1:9464", "127.0.0.1:9465"]
    with pytest.raises(InputError, match="port 65536 of worker 2"):
        parse_devices("0,3", {VARIABLE: ":65535"})


@pytest.mark.parametrize("text", ["cpu", "cpu:0", "cpu:65", "cpu:x", "0,0", "0,", "-1", "gpu", "cpu:\u0663", "all,0"])
def test_other_texts_are_refused_with_the_valid_forms(text: str) -> None:
    with pytest.raises(InputError, match=r"write all, cpu:N with N from 1 to 64, or GPUs such as 0,1"):
        parse_devices(text, {})


@given(st.text(max_size=20))
def test_any_text_names_devices_or_is_an_input_error(text: str) -> None:
    if text == "all":
        return
    try:
        found = parse_devices(text, {}, cores=4)
    except InputError:
        return
    assert len({device.name for device in found}) == len(found) > 0


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), (":80", ("", 80)), ("[::1]:0", ("::1", 0)), ("farm:1", ("farm", 1))],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["[[:0", "[::1:80", "::1]:80", "[[::1]]:80", "a[b]:80", "9464", "farm:65536"])
def test_an_invalid_address_is_refused_with_the_valid_form(text: str) -> None:
    with pytest.raises(InputError, match="write HOST:PORT, such as"):
        parse_address(text)


@given(st.text(alphabet="0123456789:[]ab", max_size=12), st.integers(0, 70_000))
def test_the_next_worker_has_the_next_port(text: str, place: int) -> None:
    try:
        host, port = parse_address(nth_address(text, place))
    except InputError:
        # no address, or beyond the last port
        return
    first_host, first_port = parse_address(text)
    assert host == first_host
    assert port == (first_port + place if first_port else 0)


def test_without_an_address_the_next_worker_has_none() -> None:
    assert nth_address("", 3) == ""
