"""Encode pixels as image files with metadata."""
