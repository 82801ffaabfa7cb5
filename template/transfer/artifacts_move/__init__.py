"""Copies all artifacts from one store to another, and has the database follow. See __main__.py."""
