"""Runs to start from: each file states its command, its cost and the result to expect, and why its numbers are what they are."""
