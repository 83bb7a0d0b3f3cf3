"""vaopd inside of other tools."""
