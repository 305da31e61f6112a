"""The Celery app, under the name that ``celery -A latentfarm_worker worker`` imports."""

import sys

from latentfarm.errors import LatentfarmError

try:
    from latentfarm_worker.service.tasks import app
except LatentfarmError as error:
    # a setting is invalid; Celery would print a traceback
    sys.stderr.write(f"latentfarm: {error}\n")
    sys.exit(error.exit_code)

__all__ = ["app"]
