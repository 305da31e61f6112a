"""A farm on one machine: Redis, an S3 server and workers as child processes, with their data in one folder."""

from latentfarm.local.farm import LocalFarm

__all__ = ["LocalFarm"]
