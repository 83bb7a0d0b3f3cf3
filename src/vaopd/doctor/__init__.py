"""What a machine can run, and what memory a recipe needs: versions, extras, estimates."""
