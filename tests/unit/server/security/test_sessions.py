"""Cookies of sessions, and rates."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.errors import UnavailableError
from latentfarm.ledger.ledger import Ledger
from latentfarm.server.security.keys import new_key
from latentfarm.server.security.session import (
    SESSION_S,
    SessionSecret,
    csrf_token,
    expiry_of,
    find_session,
    new_session,
)
from latentfarm.server.security.token_buckets import TokenBuckets

pytestmark = pytest.mark.unit

SECRET = b"s" * 32
ALICE, BOB = new_key("alice", "read")[1], new_key("bob", "admin")[1]
COOKIE = new_session(SECRET, ALICE, now_s=1_000)


def test_a_session_is_its_keys_until_it_ends() -> None:
    keys = (BOB, ALICE)
    assert find_session(SECRET, keys, COOKIE, now_s=1_000) is ALICE
    assert expiry_of(COOKIE) == 1_000 + SESSION_S
    assert find_session(SECRET, keys, COOKIE, now_s=1_000 + SESSION_S) is None
    # revoked, replaced, and of a farm with another secret
    assert find_session(SECRET, (BOB,), COOKIE, now_s=1_000) is None
    assert find_session(SECRET, (new_key("alice", "read")[1],), COOKIE, now_s=1_000) is None
    assert find_session(b"t" * 32, keys, COOKIE, now_s=1_000) is None
    assert find_session(b"", keys, COOKIE, now_s=1_000) is None


@pytest.mark.parametrize(("old", "new"), [("alice", "bob"), ("44200", "99999"), ("44200", "\u0664\u0662"), (".", "")])
def test_a_changed_cookie_is_none(old: str, new: str) -> None:
    assert old in COOKIE
    assert find_session(SECRET, (BOB, ALICE), COOKIE.replace(old, new), now_s=1_000) is None


@given(st.text())
def test_any_other_cookie_is_none(text: str) -> None:
    assert find_session(SECRET, (BOB, ALICE), text, now_s=1_000) is None
    assert csrf_token(SECRET, text) != csrf_token(SECRET, COOKIE)


def test_without_redis_the_secret_from_before_is_used(tmp_path: Path) -> None:
    clock = Clock()
    secret = SessionSecret(Ledger.connect(f"unix://{tmp_path}/none.sock"), clock=clock)
    with pytest.raises(UnavailableError):
        secret.read()
    assert secret.fresh == b""
    secret._value = SECRET
    assert secret.fresh == SECRET
    clock.now += 60
    assert secret.fresh == b""
    assert secret.read() == SECRET


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_is_full_again_after_a_minute() -> None:
    clock = Clock()
    buckets = TokenBuckets(60, max_names=10, clock=clock)
    assert [buckets.take("alice") for _ in range(61)] == [0] * 60 + [1]
    assert buckets.take("bob") == 0
    clock.now += 1
    assert [buckets.take("alice") for _ in range(2)] == [0, 1]
    clock.now += 60
    assert [buckets.take("alice") for _ in range(61)] == [0] * 60 + [1]


@given(st.integers(1, 5), st.lists(st.floats(0, 100), max_size=20))
def test_after_the_reported_wait_there_is_a_token(per_minute: int, pauses: list[float]) -> None:
    clock = Clock()
    buckets = TokenBuckets(per_minute, max_names=10, clock=clock)
    for pause in pauses:
        clock.now += pause
        if wait_s := buckets.take("alice"):
            clock.now += wait_s
            assert buckets.take("alice") == 0


def test_names_are_bounded() -> None:
    buckets = TokenBuckets(1, max_names=100)
    for name in range(1_000):
        buckets.take(str(name))
    assert len(buckets) == 100
