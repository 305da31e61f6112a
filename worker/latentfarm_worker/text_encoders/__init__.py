"""Prompts to tensors: tokens, and the text encoders as diffusers' pipelines call them."""
