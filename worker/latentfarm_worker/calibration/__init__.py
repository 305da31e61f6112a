"""Measurements of a device, made once and cached."""
