"""What a long-running program needs beside machine learning: signals, files, processes, caches."""
