"""Text-to-image generators: what methods ask of one, and each kind in a file of its own.

What only one kind has (a U-Net, ᾱ, a scheduler) is named in its file and nowhere else, but in `pretrain/`, which makes
one. To add a kind, write a class with the methods of `Generator`, and have `load_generator` choose it.
"""
