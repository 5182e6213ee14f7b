"""What a run records and shows: JSON lines, TensorBoard, the console, the report."""
