"""Measurements that are made once for a device and cached."""
