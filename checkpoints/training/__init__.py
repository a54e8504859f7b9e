"""Trains, exports and evaluates the two small checkpoints of this folder."""
