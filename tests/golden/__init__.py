"""What another implementation computed, written down as arrays."""
