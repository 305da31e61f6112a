"""The input images of jobs on the worker: fetched from the bucket, decoded, resized and encoded ahead of the engine."""
