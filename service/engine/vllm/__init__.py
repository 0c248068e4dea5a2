"""vLLM as an engine: a child process of ours that holds it, and what the service says to that child."""
