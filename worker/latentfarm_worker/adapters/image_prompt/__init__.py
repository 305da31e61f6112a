"""Image prompts: IP-Adapters by alias, and the attention of a row to its image."""
