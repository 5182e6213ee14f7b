"""Tests prove properties of the real commands, files and processes; each has been seen to fail."""
