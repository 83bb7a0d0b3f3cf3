"""Extraction of answers from responses, and their verdicts; without a model and without torch."""
