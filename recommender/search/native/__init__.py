"""The transformer in C: the same function as `recommender.search.transformer`, for float32 on x86-64."""
