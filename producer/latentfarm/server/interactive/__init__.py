"""Images that a client waits for: a batch of the ledger each, which goes before all others."""
