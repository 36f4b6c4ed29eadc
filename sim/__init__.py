"""The simulated insertion rig: physics, pictures, and drivers that stand in for devices."""
