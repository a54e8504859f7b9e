"""Answers of the embedded captioner under ten bounded schemas, at a temperature that breaks what a
grammar does not hold.
"""
