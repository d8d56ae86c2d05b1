"""A sample of policies in a distribution of their own."""
