"""Text-to-image generators: what methods ask of one, and each kind in a file of its own.

Parts of a single kind (a U-Net, ᾱ, a scheduler) are named in its folder alone, and in `pretrain/`, which makes one.
To add a kind, write a class with the methods of `Generator`, and have `load_generator` choose it.
"""
