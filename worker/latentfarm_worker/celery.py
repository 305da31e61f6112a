"""The Celery app, under the name that ``celery -A latentfarm_worker worker`` imports."""

from latentfarm_worker.service.tasks import app

__all__ = ["app"]
