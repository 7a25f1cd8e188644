"""Sources to pairs: shards are listed, rows are read, refused ones with their reason, and images decoded.

Imports `engine` (for Ray Data) and what is below it. A new layout is a file in `formats/`; see there. `shapes.py` and
`web_scenes.py` draw the procedural datasets; `sources.py` streams pairs to Ray, and `fetch_pairs` there gets
single rows.
"""
