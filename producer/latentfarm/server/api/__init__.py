"""The farm's own protocol at ``/api``: batches, jobs, images, workers and events."""
