"""What both sides mean by a recommendation: catalogue, prompt, trie, search, metrics, artifact."""
