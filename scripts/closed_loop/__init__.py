"""The closed-loop study: a policy, the simulated rig, and three ways to bring them together."""
