"""Learning pairs so that their features have the moments of the real ones: CovMatch's, and EDGE's refinement.

Imports `evaluation` and what is below it. `objective.py` and `training.py` are plain torch; `learn.py` places them.
"""
