"""Engines that answer items: in process, or through a server."""
