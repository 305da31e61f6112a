"""Submitting large and invalid files with the real command."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from tests.conftest import Command, until
from tests.support.leasing import keys_left

from latentfarm import Farm

pytestmark = pytest.mark.acceptance


def test_a_killed_submission_leaves_the_batch_opening_and_continues(
    farm: Farm, latentfarm: Command, tmp_path: Path
) -> None:
    file = tmp_path / "many.txt"
    file.write_text("".join(f"image {n}\n" for n in range(30_000)))
    command = [sys.executable, "-m", "latentfarm", "submit", "many.txt", "--batch", "many", "--no-validate-first"]
    environment = {**os.environ, **farm.settings.environment()}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    until(lambda: "many" in farm.ledger.batches() and farm.ledger.batch("many").total >= 2000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = farm.batch("many").status()
    assert before.state == "opening"
    assert 2000 <= before.total < 30_000

    (tmp_path / "other.txt").write_text("another\n")
    refused = latentfarm("submit", "other.txt", "--batch", "many", settings=farm.settings)
    assert refused.returncode == 2
    assert "its digest is" in refused.stderr

    again = latentfarm("submit", "many.txt", "--batch", "many", "--no-validate-first", settings=farm.settings)
    assert (again.returncode, again.stdout) == (0, "many\n")
    status = farm.batch("many").status()
    assert (status.state, status.total) == ("open", 30_000)


def test_a_streamed_file_with_invalid_rows_exits_1_with_the_counts_by_reason(
    farm: Farm, latentfarm: Command, tmp_path: Path
) -> None:
    rows = [{"prompt": "a"}] * 2000 + [{"prompt": "a", "width": 65}] * 3 + [{"promt": "a"}] + [{"prompt": "a"}] * 500
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    streamed = latentfarm("submit", "p.jsonl", "--batch", "b", "--no-validate-first", settings=farm.settings)
    assert (streamed.returncode, streamed.stdout) == (1, "b\n")
    assert "4 invalid rows became failed jobs" in streamed.stderr
    assert "width: 3" in streamed.stderr
    listed = latentfarm("jobs", "b", "--state", "failed", settings=farm.settings)
    assert "invalid_row" in listed.stdout
    assert "p.jsonl line 2001: width 65" in listed.stdout

    checked = latentfarm("submit", "p.jsonl", "--batch", "c", settings=farm.settings)
    assert checked.returncode == 2
    assert "4 problems" in checked.stderr
    assert "nothing was enqueued" in checked.stderr
    assert farm.ledger.batches() == ["b"]


def bomb(of: bytes, times: int) -> bytes:
    """Return a gzip stream of ``times`` copies of ``of``. One block is compressed and repeated."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = deflate.compress(of) + deflate.flush(zlib.Z_FULL_FLUSH)
    end, checksum = deflate.flush(), 0
    for _ in range(times):
        checksum = zlib.crc32(of, checksum)
    head = gzip.compress(b"", mtime=0)[:10]
    return head + block * times + end + struct.pack("<II", checksum, len(of) * times % 2**32)


ZEROS = bytes(1 << 20)

BAD_FILES: dict[str, bytes] = {
    "line.txt": b"a cat\n" + b"x" * (64 << 20),
    "latin.txt": b"caf\xe9\n",
    "nul.jsonl": b'{"prompt": "a\\u0000b"}\n',
    "ragged.csv": b"prompt,seed\na,1\nb\n",
    "wrong.parquet": b"PAR1 this is none",
    "empty.txt": b"",
    "bomb.txt.gz": bomb(ZEROS, 2048),
    "newlines.txt.gz": bomb(b"\n" * (1 << 20), 2048),
    "cut.jsonl.gz": bomb(b'{"prompt": "a"}\n', 5000)[:-20],
    "twice.jsonl": b'{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n',
    "flag.txt": b"a cat --stepz 5\n",
    "word.docx": b"a cat\n",
    "wrong.jsonl": b'{"prompt": "a", "width": 65}\n' * 200_000,
}


#: runs the command and writes its own peak memory; the rusage of a child includes memory of its parent
MEASURED = """
import atexit, pathlib
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: pathlib.Path("status").write_text(status.read_text()))
from latentfarm.cli import main
main()
"""


def submit_measured(file: Path, farm: Farm) -> tuple[subprocess.CompletedProcess[str], float]:
    """Submit a file; return the ended command and its peak resident memory in MB."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, "submit", file.name],
        cwd=file.parent,
        env={**os.environ, **farm.settings.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    peak = re.search(r"VmHWM:\s+(\d+) kB", (file.parent / "status").read_text())
    assert peak is not None
    return ended, int(peak[1]) / 1024


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_input_is_rejected_in_little_memory_and_stores_nothing(farm: Farm, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD_FILES[name])
    ended, memory_mb = submit_measured(tmp_path / name, farm)
    assert ended.returncode == 2
    assert name in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr) < 6_000
    assert memory_mb < 200
    assert keys_left(farm.ledger) == []
    assert list(farm.bucket.keys("")) == []


@pytest.mark.parametrize("batch", ["../up", "A", "a/b", "", "x" * 65])
def test_a_batch_name_outside_its_alphabet_is_rejected(
    farm: Farm, latentfarm: Command, tmp_path: Path, batch: str
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    ended = latentfarm("submit", "p.txt", "--batch", batch, settings=farm.settings)
    assert ended.returncode == 2
    assert "batch name" in ended.stderr
    assert keys_left(farm.ledger) == []
