"""Needs and costs of a run, before it starts.

Imports `data` and what is below it; no method: a method says what its stages cost. `reference_runs/` has what the
local presets took on two cores, recorded by `benchmarks/figures.py`.
"""
