"""How clients and the policy server reach each other: gRPC as LeRobot's clients do, or ZeroMQ."""
