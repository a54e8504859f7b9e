"""Boxes that an answer names: read from its text and scaled to the caller's picture."""
