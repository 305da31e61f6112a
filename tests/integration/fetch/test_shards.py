"""Fetch batches as WebDataset shards."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from pyarrow import parquet
from tests.conftest import read_lines
from tests.support.fetching import image_bytes, names_in, work

from latentfarm import Farm, InputError
from latentfarm.fetch import FetchReport

pytestmark = pytest.mark.integration


def test_webdataset_shards_have_each_image_with_its_prompt_and_line(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit([{"prompt": f"prompt {n}", "id": f"i{n}"} for n in range(1010)], batch="cats")
    work(farm, batch, fail=frozenset({1}), intermediates=True)
    fetched = batch.fetch(tmp_path, layout="webdataset")
    assert (fetched.downloaded, fetched.states) == (4, {"done": 1009, "failed": 1})
    assert names_in(tmp_path) == {"shard-00000.tar", "shard-00001.tar", "__intermediates__", "__tables__"}
    assert names_in(tmp_path / "__intermediates__") == {"shard-00000.tar", "shard-00001.tar"}
    assert names_in(tmp_path / "__tables__") == {"index.parquet", "results.jsonl"}
    for folder, image in ((tmp_path, image_bytes(1000)), (tmp_path / "__intermediates__", image_bytes(1007))):
        with tarfile.open(folder / "shard-00001.tar") as tar:
            members = tar.getmembers()
            assert [m.name for m in members[:3]] == ["00001000.json", "00001000.png", "00001000.txt"]
            assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
            bodies = [opened.read() for m in members[:3] if (opened := tar.extractfile(m)) is not None]
        assert bodies[1:] == [image, b"prompt 1000"]
        assert json.loads(bodies[0])["id"] == "i1000"
    line = read_lines(fetched.results)[1000]
    assert (line["file"], line["shard"]) == ("00001000.png", "shard-00001.tar")
    assert line["intermediates"] == "__intermediates__/shard-00001.tar"
    index = parquet.read_table(tmp_path / "__tables__" / "index.parquet").to_pylist()
    assert len(index) == 1009
    assert (index[1]["key"], index[1]["shard"], index[1]["prompt"]) == ("00000002", "shard-00000.tar", "prompt 2")
    assert index[1]["sha256"] == hashlib.sha256(image_bytes(2)).hexdigest()


def test_a_complete_shard_stays_and_one_with_more_done_jobs_is_written_again(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit(["a"] * 1020, batch="cats")
    work(farm, batch, count=1005)
    first = batch.fetch(tmp_path, layout="webdataset")
    complete, partial = ((tmp_path / f"shard-0000{n}.tar") for n in (0, 1))
    at, before = complete.stat().st_mtime_ns, complete.read_bytes()
    work(farm, batch)
    second = batch.fetch(tmp_path, layout="webdataset")
    assert (first.downloaded, second.downloaded, second.present) == (2, 1, 1)
    assert complete.stat().st_mtime_ns == at
    with tarfile.open(partial) as tar:
        assert len(tar.getnames()) == 60
    # cut, as by a full disk: written again with the same bytes
    complete.write_bytes(before[: len(before) // 2])
    third = batch.fetch(tmp_path, layout="webdataset")
    assert (third.downloaded, third.present) == (1, 1)
    assert complete.read_bytes() == before
    partial.unlink()
    fourth = batch.fetch(tmp_path, layout="webdataset", skip_fetched=True)
    assert (fourth.downloaded, fourth.skipped, partial.exists()) == (0, 1020, False)


def test_an_interrupted_shard_is_absent_and_complete_ones_before_it_stay(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit(["a"] * 1050, batch="cats")
    work(farm, batch)

    def interrupt(_: FetchReport) -> None:
        if (tmp_path / "shard-00000.tar").exists() and list(tmp_path.glob(".shard-00001.tar.*")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.fetch(tmp_path, layout="webdataset", progress=interrupt)
    assert names_in(tmp_path) == {"shard-00000.tar", "__tables__"}
    again = batch.fetch(tmp_path, layout="webdataset")
    assert (again.downloaded, again.present) == (1, 1)


def test_a_webdataset_takes_no_name_template(farm: Farm, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --name-template"):
        farm.submit(["a"], batch="cats").fetch(tmp_path / "out", layout="webdataset", name_template="{id}.png")
