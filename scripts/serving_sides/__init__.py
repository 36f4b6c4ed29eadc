"""The sides of `bench_serving.py`: servers and clients that run as programs of their own."""
