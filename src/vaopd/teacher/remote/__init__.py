"""A teacher in other processes: its server, its client and their messages."""
