"""A teacher in other processes: its server, its client and what passes between them."""
