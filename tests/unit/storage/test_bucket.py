from __future__ import annotations

import pytest

from latentfarm.errors import InputError
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket

pytestmark = pytest.mark.unit


def bucket(endpoint: str) -> Bucket:
    return Bucket.connect(Settings().model_copy(update={"bucket": "b", "s3_endpoint_url": endpoint}))


def test_an_invalid_endpoint_is_an_input_error_at_the_first_request() -> None:
    with pytest.raises(InputError, match=r"cannot be used: Invalid endpoint.*correct AWS_ENDPOINT_URL"):
        bucket("nonsense").head()


def test_an_unknown_aws_profile_is_an_input_error_at_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(InputError, match=r"no-such-profile.*AWS_PROFILE"):
        bucket("http://127.0.0.1:1").exists("k")
