"""Many requests at once, each with the tokens it would get alone."""
