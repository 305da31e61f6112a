"""The peer of a worker's start: load the pipeline, render and store one image, exit.

It is configured by the environment of ``end_to_end.peer_environment``.
"""

from __future__ import annotations

import os

from tests.bench import diffusers_pipeline
from tests.bench.workload import uniform

from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket


def main() -> None:
    settings = Settings.load().require()
    bucket = Bucket.connect(settings)
    device = os.environ["BENCH_DEVICE"]
    pipe = diffusers_pipeline.load_pipe(settings.model_source, dtype=settings.dtype, device=device)
    body = diffusers_pipeline.png(diffusers_pipeline.render_one(pipe, uniform(1)[0]))
    bucket.client.put_object(Bucket=bucket.name, Key="diffusers/first.png", Body=body, ContentType="image/png")


if __name__ == "__main__":
    main()
