"""OpenAI's protocol at ``/v1``: models, images, files and batches."""
