"""One file for each benchmark; ``vaopd.evaluation.registry`` names them."""
