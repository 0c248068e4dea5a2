"""The engines: one protocol, one folder for each kind."""
