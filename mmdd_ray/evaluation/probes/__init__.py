"""Tests of trained dual encoders beyond retrieval: zero-shot classification, linear probes, compositional captions.

`sets.py` holds the data in memory, `score.py` asks a student all of it, and a file each has the mathematics. `read.py`
reads the data with Ray; nothing else here imports it.
"""
