"""The app where ``celery -A latentfarm_worker worker`` looks for it."""

from latentfarm_worker.service.tasks import app

__all__ = ["app"]
