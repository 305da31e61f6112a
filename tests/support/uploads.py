"""Uploads in parts that have not ended."""

from __future__ import annotations

from botocore.exceptions import ClientError

from latentfarm.farm import Farm


def count_uploads(farm: Farm) -> int:
    """Return how many objects are being uploaded in parts. rclone's server answers 404 before the first one."""
    try:
        return len(farm.bucket.client.list_multipart_uploads(Bucket=farm.bucket.name).get("Uploads", []))
    except ClientError:
        return 0
