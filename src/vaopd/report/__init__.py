"""The inspection report: one HTML page from a run folder. No torch, no network."""
