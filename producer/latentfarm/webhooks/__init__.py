"""Deliver signed webhooks when a batch ends."""
