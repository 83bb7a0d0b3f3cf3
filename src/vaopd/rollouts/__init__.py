"""Sampling of student responses."""
