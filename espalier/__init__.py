"""The command line: mounts `pruning.cli` and `service.cli`, and holds the demo that uses both."""
