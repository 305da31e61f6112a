"""Additions to a model that jobs name: LoRAs, embeddings, ControlNets and image prompts."""
