"""The keys file: what is accepted, what is refused, and when it is read again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from latentfarm.cli import app
from latentfarm.errors import InputError
from latentfarm.server.http.operation import Scope
from latentfarm.server.security.keys import KeyFile, digest_of, match, new_key, parse_keys

pytestmark = pytest.mark.unit

DIGEST = "a" * 64


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("alice", "1 fields; write NAME:SHA256:SCOPES"),
        ("alice:secret:read", "not the SHA-256 of a key"),
        (f"alice:{DIGEST}", "2 fields"),
        (f"alice:{DIGEST}:read:submit", "4 fields"),
        (f"Alice:{DIGEST}:read", "key name 'Alice': write 1 to 64"),
        (f"local:{DIGEST}:read", "choose another name"),
        (f"alice:{DIGEST}:", "scope '': write one or more of read, submit, admin"),
        (f"alice:{DIGEST}:none", "scope 'none'"),
        (f"bob:{DIGEST}:read\nbob:{'b' * 64}:read", "line 2 has the same name as line 1"),
        (f"bob:{DIGEST}:read\n\neve:{DIGEST}:read", "line 3 has the same key as line 1"),
    ],
)
def test_a_broken_line_has_its_place_and_its_cure(line: str, cure: str) -> None:
    with pytest.raises(InputError, match=r"keys\.txt line \d") as raised:
        parse_keys(line, "keys.txt")
    assert cure in str(raised.value)
    # a user may have written the key where its hash belongs
    assert "secret" not in str(raised.value)


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text_is_keys_or_an_error(text: str) -> None:
    try:
        found = parse_keys(text, "keys.txt")
    except InputError:
        return
    assert parse_keys("\n".join(key.line for key in found), "keys.txt") == found


@given(st.permutations(["read", "submit", "admin"]), st.text(alphabet="abcz09-_", min_size=1, max_size=63))
def test_a_new_key_is_found_by_its_secret_only(scopes: list[str], name: str) -> None:
    secret, key = new_key(f"k{name}", ",".join(scopes))
    keys = parse_keys(f"# comment\n\n other:{DIGEST.upper()}:read \r\n{key.line}\n", "keys.txt")
    assert match(keys, secret) == key
    assert match(keys, secret[:-1]) is None
    assert match(keys, "") is None
    assert secret not in key.line


def test_all_keys_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = parse_keys("\n".join(f"k{n}:{digest_of(str(n)).hex()}:read" for n in range(5)), "keys.txt")
    compared: list[bytes] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append(left)
        return left == right

    monkeypatch.setattr("hmac.compare_digest", compare)
    found = match(keys, "0")
    assert found is not None
    assert found.name == "k0"
    assert compared == [key.digest for key in keys]


def test_scopes_include_lower_ones() -> None:
    for text, allowed in (("read", 2), ("submit", 3), ("admin", 4)):
        access = new_key("a", text)[1].access
        assert [access.allows(scope) for scope in Scope] == [n < allowed for n in range(4)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_changed_file_is_read_again_and_a_broken_one_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "keys.txt", Clock()
    file.write_text(f"alice:{DIGEST}:read\n")
    file.chmod(0o666)
    keys = KeyFile(file, clock=clock)
    assert "chmod o-w" in caplog.text

    def names_after(text: str | None) -> list[str]:
        if text is not None:
            file.write_text(text)
        clock.now += 1
        return [key.name for key in keys.current()]

    assert names_after(None) == ["alice"]
    assert names_after(f"bob:{DIGEST}:read\neve:{'b' * 64}:read\n") == ["bob", "eve"]
    with caplog.at_level(logging.ERROR):
        assert names_after(f"bob:{DIGEST}:read\nbroken") == ["bob", "eve"]
        assert "line 2" in caplog.text
        file.unlink()
        assert names_after(None) == ["bob", "eve"]
    # as kubelet updates a mounted secret: a link leads to another file
    (tmp_path / "new").write_text(f"eve:{'c' * 64}:read\n")
    file.symlink_to(tmp_path / "new")
    assert names_after(None) == ["eve"]
    # the last key is revoked: no client is admitted
    assert names_after("# none\n") == []


@pytest.mark.parametrize("body", [None, b"", b"# no key\n", b"\xff", b"x" * 2_000_000])
def test_a_server_does_not_start_without_a_key(tmp_path: Path, body: bytes | None) -> None:
    file = tmp_path / "keys.txt"
    if body is not None:
        file.write_bytes(body)
    with pytest.raises(InputError, match=r"keys\.txt"):
        KeyFile(file)


def test_the_command_adds_a_key_to_a_file_of_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"# keys\nalice:{DIGEST}:read")
    made = CliRunner().invoke(app, ["key", "new", "bob", "--scopes", "admin", "--append", str(file)])
    assert made.exit_code == 0, made.stderr
    found = match(parse_keys(file.read_text(), "keys.txt"), made.stdout.strip())
    assert found is not None
    assert (found.name, found.access.scopes) == ("bob", frozenset({Scope.ADMIN}))
    before = file.read_bytes()
    assert isinstance(CliRunner().invoke(app, ["key", "new", "bob", "--append", str(file)]).exception, InputError)
    assert file.read_bytes() == before
    other = tmp_path / "new.txt"
    CliRunner().invoke(app, ["key", "new", "bob", "--append", str(other)])
    assert other.stat().st_mode & 0o077 == 0
    printed = CliRunner().invoke(app, ["key", "new", "eve"])
    found = match(parse_keys(printed.stdout, "stdout"), printed.stderr.split()[-1])
    assert found is not None
    assert found.access.scopes == {Scope.READ, Scope.SUBMIT}
