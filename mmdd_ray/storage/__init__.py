"""Files on local disk and object stores, written whole or not at all; what failed, in one sentence; no secret shown.

Imports `errors` alone. Everything that is read or written goes through `store.py`, or through `remote.py` where it is
the user's data.
"""
