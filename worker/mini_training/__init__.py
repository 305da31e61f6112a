"""Train the bundled model mini. This package is not part of the wheel."""
