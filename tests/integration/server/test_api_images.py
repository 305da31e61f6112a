"""One job with its parameters, and the strip of its intermediate images."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from tests.conftest import until
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm
from latentfarm.image_formats import embedded_text

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
