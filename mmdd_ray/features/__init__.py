"""CLIP features of all pairs in one streaming pass, exact moments of them, and coresets by them.

Imports `data` and what is below it. Whatever else is to be had of every image is another actor for `shard_pool.py`.
"""
