"""Runs to start from. Each file states its command, its cost, the expected result, and why."""
