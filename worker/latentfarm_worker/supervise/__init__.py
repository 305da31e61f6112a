"""Start, watch and restart worker processes. This package imports only the standard library and logs."""
