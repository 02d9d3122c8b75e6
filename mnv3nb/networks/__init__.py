"""Networks by name, and networks on disk."""
