"""The staged pipeline: a recipe is a list of stages, a stage is data, and one loop runs them."""
