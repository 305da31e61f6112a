"""Who may do what: keys, scopes, limits, origins and the audit log."""
