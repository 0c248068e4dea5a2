"""The native engine: the trie search of `recommender`, run by one thread for all requests."""
