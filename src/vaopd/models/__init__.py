"""Models: loading, prompts, packing, families and the tiny models of the package."""
