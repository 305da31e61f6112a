"""Rebuild a batch's ledger record from the bucket."""
