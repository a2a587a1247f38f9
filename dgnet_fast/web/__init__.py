"""The demonstration page and its server."""
