"""Continuous batching at the denoising step. This package imports no Redis, S3 or Celery."""
