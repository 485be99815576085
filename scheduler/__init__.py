"""The scheduling core, and the shard process around it."""
