"""Scores of unsafe concepts in images. No image is changed."""
