"""Restoration: the pruned student learns from its teacher's next-token distributions."""
