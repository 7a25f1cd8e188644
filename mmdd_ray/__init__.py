"""Distil a huge image-caption dataset into a few hundred synthetic pairs, on Ray."""

__version__ = "0.1.0"
