"""What a person sees of a run: one page a run, and a comparison of several."""
