"""Model cards, and pushing exported models to the Hugging Face hub."""
