"""Reports what a machine can run and how much memory a recipe needs."""
