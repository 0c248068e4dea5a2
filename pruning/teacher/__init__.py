"""Where a teacher comes from: a pretrained base or a small model from scratch, and its vocabulary."""
