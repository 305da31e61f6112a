"""The worker process: lease, render, upload, and the threads around it."""
