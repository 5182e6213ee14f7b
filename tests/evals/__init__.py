"""Evaluations: what they find is what plainer programs find."""
