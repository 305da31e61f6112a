"""Reading any content gives rows, row errors or one InputError, and never another exception."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.errors import InputError
from latentfarm.submission.prompts import FORMATS, LocatedRow, ReadOptions, RowError, open_source

pytestmark = pytest.mark.unit

OPTIONS = st.builds(ReadOptions, prompt_column=st.sampled_from([None, "prompt", "caption"]), keep_columns=st.booleans())
#: pieces with a meaning in some format, so that random text passes the first checks
PIECES = st.sampled_from(
    [
        "prompt",
        "caption",
        "seed",
        ",",
        "\t",
        "\n",
        "\r\n",
        "\r",
        ";",
        "sep=;",
        '"',
        "{",
        "}",
        ":",
        "[",
        "]",
        "null",
        "--n ",
        " --w 512",
        "1",
        "#",
    ]
) | st.sampled_from(
    ["--prompt ", "a cat", "\\", "NaN", '{"prompt": "a"}', '{"custom_id": "a", "body": {}}', "\0", "\ud800", "é"]
)
TEXTS = st.lists(PIECES, max_size=30).map(lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass"))


def read_quietly(file: Path, options: ReadOptions) -> None:
    try:
        for found in open_source(file, options).read():
            assert isinstance(found, LocatedRow | RowError)
    except InputError as error:
        assert str(error)  # noqa: PT017 - raising nothing is as good


@given(st.binary(max_size=200) | TEXTS, st.sampled_from(FORMATS), OPTIONS, st.booleans())
def test_any_bytes_give_rows_row_errors_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    suffix: str,
    options: ReadOptions,
    packed: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    file = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    file.write_bytes(gzip.compress(data, 1) if packed and suffix.endswith(".gz") else data)
    read_quietly(file, options)
