"""Constrained search over the catalogue's trie, and the lean transformer that it runs."""
