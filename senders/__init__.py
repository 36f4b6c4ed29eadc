"""Programs on the robot's side of the wire, and the drivers of its devices."""
