"""Policies: what computes features and actions; it knows no socket and no thread."""
