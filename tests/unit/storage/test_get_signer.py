"""The signer of GETs gives botocore's headers and query."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote

import pytest
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import example, given
from hypothesis import strategies as st

from latentfarm.storage.get_signer import GetSigner

BASES = [
    "http://127.0.0.1:9000/bucket",
    "http://[::1]:9000/bucket",
    "https://bucket.s3.eu-west-1.amazonaws.com",
    "https://bucket.s3.eu-west-1.amazonaws.com:443",
    "http://store:443/bucket",
]
words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)


def signed_by_botocore(url: str, region: str, credentials: Credentials, now: datetime) -> dict[str, str]:
    request = AWSRequest("GET", url)
    with patch.object(auth, "get_current_datetime", lambda: now):
        auth.S3SigV4Auth(credentials, "s3", region).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@given(
    st.sampled_from(BASES),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.sampled_from(["us-east-1", "eu-west-1"]),
    words,
    words,
    st.none() | words,
    st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - given as UTC below
)
@example(BASES[0], "batches/b/images/00000/00000001-7.png", "us-east-1", "key", "secret", None, datetime(2026, 1, 1))  # noqa: DTZ001
def test_the_headers_and_the_query_are_botocores(
    base: str, key: str, region: str, access: str, secret: str, token: str | None, now: datetime
) -> None:
    credentials, moment = Credentials(access, secret, token), now.replace(tzinfo=UTC)
    url = f"{base}/{quote(key, safe='/~')}"
    path = "/" + url.partition("://")[2].partition("/")[2]
    expected = signed_by_botocore(url, region, credentials, moment)
    found = {
        name.lower(): value for name, value in GetSigner(base, region, credentials).headers(path, now=moment).items()
    }
    assert {name: found[name] for name in expected} == expected
    request = AWSRequest("GET", url)
    with patch.object(auth, "get_current_datetime", lambda: moment):
        auth.S3SigV4QueryAuth(credentials, "s3", region, expires=600).add_auth(request)
    query = GetSigner(base, region, credentials).query(path, expires_s=600, now=moment)
    assert sorted(query.split("&")) == sorted(request.url.partition("?")[2].split("&"))


def test_renewed_credentials_sign_the_next_request() -> None:
    credentials = Credentials("old", "old-secret")
    signer = GetSigner(BASES[0], "us-east-1", credentials)
    before = signer.headers("/bucket/k")["Authorization"]
    credentials.access_key, credentials.secret_key = "new", "new-secret"
    after = signer.headers("/bucket/k")["Authorization"]
    assert "Credential=old/" in before
    assert "Credential=new/" in after
    assert before.rpartition("=")[2] != after.rpartition("=")[2]


@pytest.mark.parametrize(
    ("base", "host"), [(BASES[0], "127.0.0.1:9000"), (BASES[1], "[::1]:9000"), (BASES[4], "store:443")]
)
def test_the_host_is_that_of_the_request(base: str, host: str) -> None:
    assert GetSigner(base, "us-east-1", Credentials("key", "secret")).headers("/k")["host"] == host
