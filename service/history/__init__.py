"""Users' histories: HTTP, the Redis store, the embedded server, the import of a data set."""
