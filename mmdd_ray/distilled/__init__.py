"""The distilled set: shards, manifest, card and contact sheet, and learnt pairs beside them; written and read.

Imports `data` and what is below it; imports no torch, so that a set can be read anywhere.
"""
