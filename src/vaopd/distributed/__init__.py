"""The processes of a run: exchange of values, sharding, assignment of problems."""
