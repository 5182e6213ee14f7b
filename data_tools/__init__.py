"""Commands that turn text into token shards for training; `--help` describes each of them."""
