"""Our weights in other programs, and theirs in ours."""
