"""The parts of `compare_architectures.py`; `profile_inference.py` shares some of them."""
