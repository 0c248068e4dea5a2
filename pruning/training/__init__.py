"""One training loop for teachers and students: packed users, token-budget batches, resumable runs."""
