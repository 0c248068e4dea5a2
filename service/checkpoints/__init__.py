"""Which model serves: loading it, proving it, and handing it out."""
