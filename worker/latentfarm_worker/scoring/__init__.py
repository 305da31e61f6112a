"""Scores of images and drafts, by which the best are chosen. No image is changed."""
