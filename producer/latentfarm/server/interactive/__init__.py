"""Images that a client waits for: small batches of high priority."""
