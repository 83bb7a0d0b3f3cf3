"""From a response to its answer, and from an answer to a verdict. No model and no torch here."""
