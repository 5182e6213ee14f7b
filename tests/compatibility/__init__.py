"""Files that earlier versions of this project wrote: what they made must keep working."""
