"""Requests to hosts that a user chose, without giving them access to the private network."""
