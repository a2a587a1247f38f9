"""Generating pictures: codes, pairs, figures, whole sets, and their scores."""
