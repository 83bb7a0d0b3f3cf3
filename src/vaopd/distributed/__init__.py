"""The processes of a run: values that they share, sharded models, who gets which problems."""
