"""Lengths of time as text."""


def format_duration(seconds: float) -> str:
    """A measured time in its two largest units: "45s", "12m05s", "7h31m", "3d04h"."""
    seconds = int(seconds)
    for large, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if seconds >= large:
            return f"{seconds // large}{names[0]}{seconds % large // small:02d}{names[1]}"
    return f"{seconds}s"


def format_estimate(seconds: float) -> str:
    """An estimated time in one unit: "45 minutes", "36.0 hours", "3.1 days"."""
    hours = seconds / 3600
    if hours > 48:
        return f"{hours / 24:.1f} days"
    if hours > 2:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.0f} minutes"
