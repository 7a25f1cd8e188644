"""Placing work on a cluster and keeping its results: run directories, Ray's sessions, actor pools and trainings.

Knows no method and no data. Imports `storage` and `config`. Ray does the scheduling: nothing here waits, retries or
balances in its place.
"""
