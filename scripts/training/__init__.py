"""Training of the policies: what `scripts/train.py` and its kin are made of."""
