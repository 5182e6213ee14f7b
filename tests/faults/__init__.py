"""What the system survives: faults made to happen to the real commands."""
