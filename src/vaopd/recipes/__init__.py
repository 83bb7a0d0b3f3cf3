"""Recipes that ship with the package: files of this folder, found by name."""
