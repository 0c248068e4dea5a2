"""From raw interactions and titles to a prepared data set (`recommender.dataset`)."""
