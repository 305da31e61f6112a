"""Submit a batch: read rows, expand them, validate them, store the manifest in parts."""
