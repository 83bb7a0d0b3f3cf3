"""Problems: the row everyone works on, and where rows come from."""
