"""What a long-running program needs around the machine learning: signals, files, processes, caches."""
