"""Programs that measure what the documentation claims; each prints the table of its numbers."""
