"""Trains, exports and evaluates the two small checkpoints of this folder.

Knows the world of shapes and the layouts of the real checkpoints. Does not know the server.
"""
