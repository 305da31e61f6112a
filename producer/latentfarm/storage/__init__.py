"""The bucket: object keys, manifests, results and what both sides read and write there."""
