"""Programs that turn text into the token shards that training reads; each one explains itself with --help."""
