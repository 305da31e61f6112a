"""Start, watch and restart worker processes. Only the standard library and a few small modules are imported."""
