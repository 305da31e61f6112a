"""What all protocols share: operations, errors, bodies and server-sent events."""
