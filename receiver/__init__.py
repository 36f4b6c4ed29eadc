"""The wire in, a slow loop and a fast loop, actions out."""
