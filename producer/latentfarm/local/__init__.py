"""A farm on one machine: a Redis, an S3 server and workers as child processes, below one folder."""

from latentfarm.local.farm import LocalFarm

__all__ = ["LocalFarm"]
