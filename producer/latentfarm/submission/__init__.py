"""Submit a batch: read and validate rows, expand them, store the manifest."""
