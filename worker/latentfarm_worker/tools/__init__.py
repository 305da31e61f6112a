"""Commands that run a model without the farm: verify and bench."""
