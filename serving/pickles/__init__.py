"""LeRobot's pickles, read as data and written as data; `pickle` itself is never used."""
