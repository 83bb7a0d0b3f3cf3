"""Engines that answer items: in this process, or through a server."""
