"""The frozen teacher and its scores."""
