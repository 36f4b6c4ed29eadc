"""A stand-in for the ZED SDK's Python package, which installs only with the SDK."""
