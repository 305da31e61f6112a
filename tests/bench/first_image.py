"""The peer of a start: loads the pipe, draws one picture, stores it and ends; set up by a worker's environment."""

from __future__ import annotations

import os

from tests.bench import pipes
from tests.bench.workload import uniform

from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket


def main() -> None:
    """Store one picture."""
    settings = Settings.load().require()
    bucket = Bucket.connect(settings)
    pipe = pipes.load_pipe(settings.model_source, dtype=settings.dtype, device=os.environ["STOCK_DEVICE"])
    body = pipes.png(pipes.draw_one(pipe, uniform(1)[0]))
    bucket.client.put_object(Bucket=bucket.name, Key="stock/first.png", Body=body, ContentType="image/png")


if __name__ == "__main__":
    main()
