"""One job with its parameters, and the strip of its intermediate images."""

from __future__ import annotations

import hashlib
import io

import pytest
from PIL import Image
from tests.conftest import until
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm
from latentfarm.image_formats import embedded_text
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import image_key

pytestmark = pytest.mark.integration


@pytest.mark.usefixtures("rendering")
def test_a_job_has_the_parameters_of_its_image_and_its_intermediates(server: RunningServer) -> None:
    client, path = server.client, "/api/batches/strips"
    row = {"prompt": "a (cat)", "negative_prompt": "a dog", "save_intermediates": True, "num_inference_steps": 3}
    client.post("/api/batches", json={"name": "strips", "rows": [row, "a cow"], "model": "mini"})
    until(lambda: client.get(path).json()["done"] == 2)

    job = client.get(f"{path}/jobs/0").json()
    with Image.open(io.BytesIO(client.get(job["image"]).content)) as image:
        size = image.size
        assert job["parameters"] == embedded_text(image)["parameters"]
    assert job["parameters"].startswith("a \\(cat\\)\nNegative prompt: a dog\nSteps: 3, ")
    assert client.get(f"{path}/jobs").json()["jobs"][0] == {name: job[name] for name in job if name != "parameters"}

    strip = client.get(job["intermediates"])
    assert (strip.headers["content-type"], strip.headers["cache-control"]) == (
        "image/png",
        "private, max-age=31536000, immutable",
    )
    with Image.open(io.BytesIO(strip.content)) as image:
        assert image.height == size[1]
        assert image.width > size[0]
        assert image.width % size[0] == 0
    assert client.get(job["intermediates"], headers={"If-None-Match": strip.headers["etag"]}).status_code == 304
    # without an epoch, that of the latest image
    latest = client.get(f"{path}/intermediates/0")
    assert (latest.content, latest.headers["cache-control"]) == (strip.content, "private, no-cache")

    plain = client.get(f"{path}/jobs/1").json()
    assert plain["intermediates"] is None
    error = client.get(f"{path}/intermediates/1").json()["error"]
    assert error["message"] == "job strips/1 has no intermediate images; submit it with save_intermediates"
    for wrong in ("0?epoch=1", "1?epoch=5", "2", "x", "0?epoch=x"):
        assert client.get(f"{path}/intermediates/{wrong}").status_code == (400 if wrong == "0?epoch=x" else 404)
    assert client.get("/api/batches/none/intermediates/0?epoch=1").status_code == 404


def test_a_job_without_an_image_or_with_a_poor_receipt_has_no_parameters(server: RunningServer, farm: Farm) -> None:
    farm.submit(["a cat", "a cow"], batch="poor", model="unserved")
    [lease] = farm.ledger.lease("unserved", "worker-x", 1, lease_s=60)
    farm.ledger.commit([(lease, {"key": "batches/poor/images/00000/00000000-1.png", "sha256": "", "intermediates": 3})])
    for index in (0, 1):
        job = server.client.get(f"/api/batches/poor/jobs/{index}").json()
        assert job["parameters"] is None
    assert server.client.get("/api/batches/poor/intermediates/0").status_code == 404
    assert server.client.get("/api/batches/poor/intermediates/1").json()["error"]["code"] == "no_image"


def test_images_are_read_without_boto3_and_compared_with_their_receipts(
    server: RunningServer, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    Image.new("RGB", (640, 320), "red").save(out, "PNG")
    farm.submit(["a cat", "a cow", "a dog"], batch="read", model="unserved")
    for lease in farm.ledger.lease("unserved", "worker-x", 3, lease_s=60):
        key, sha256 = image_key("read", lease.index, lease.epoch), hashlib.sha256(out.getvalue()).hexdigest()
        if lease.index < 2:
            farm.bucket.put(key, out.getvalue() + b"damaged" * lease.index)
        farm.ledger.commit([(lease, {"key": key, "sha256": sha256})])
    whole, damaged, missing = server.client.get("/api/batches/read/jobs").json()["jobs"]
    error = server.client.get("/api/batches/read/images/1").json()["error"]
    assert (error["code"], damaged["state"]) == ("damaged_image", "done")
    for kind in ("image", "thumbnail"):
        assert server.client.get(missing[kind]).json()["error"]["code"] == "no_image"
    assert server.client.get("/api/batches/read/images/0").content == out.getvalue()
    # boto3 takes ten times the CPU, and a page has a hundred images
    monkeypatch.setattr(Bucket, "get", None)
    assert server.client.get(whole["image"]).content == out.getvalue()
    with Image.open(io.BytesIO(server.client.get(whole["thumbnail"]).content)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (256, 128))
