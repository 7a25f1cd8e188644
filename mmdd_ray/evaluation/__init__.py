"""How good a set is: students of it and of its baselines, compared fairly, and the report.

Imports `distilled`, `features`, `planning` and what is below them. A new task is two files in `tasks/`; see there.
`sets.py` has the baselines of real pairs, `pairs.PairSet` is a set in memory. `compare.py` has students of each set
trained (`bench.py`) and sums their figures up (`panel.py`); `beside_runs.py` puts finished runs in one table.
"""
