"""Models: loading, prompts, packing, families and the tiny ones that ship."""
