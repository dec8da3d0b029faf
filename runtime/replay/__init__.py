"""Choices of one engine, read off and replayed in another."""
