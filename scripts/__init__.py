"""Things a person runs now and then."""
