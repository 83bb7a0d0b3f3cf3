"""Answers, accuracy and reliance on the image."""
