"""Arrays that another implementation computed."""
