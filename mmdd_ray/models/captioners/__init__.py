"""Captioners: what methods ask of one, and each kind in a file of its own.

To add a kind, write a class with the methods of `Captioner`, and have `load_captioner` choose it by the name.
"""
