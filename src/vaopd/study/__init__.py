"""Arms x seeds: the paper's tables and figures in miniature, with intervals; without torch."""
