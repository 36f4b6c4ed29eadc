"""A policy behind a network: the server, and its clients on robots."""
