"""Request intake: the load generator."""
