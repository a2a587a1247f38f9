"""Retrieval: features of pictures, searchable galleries, and scores."""
