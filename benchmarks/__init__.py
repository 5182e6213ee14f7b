"""Programs that measure what the documentation claims; each one prints the table it is quoted from."""
