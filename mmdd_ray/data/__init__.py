"""Sources to pairs: shards are listed, rows are read, refused ones with their reason, and images decoded.

Imports `engine` (for Ray Data) and what is below it. A URI goes through `listing.py` (what is stored), `layouts.py`
(what that holds, and which split of it) and `shards.py`; a new format is a file in `formats/`. `shapes.py` and
`web_scenes.py` draw the procedural datasets; `sources.py` streams pairs to Ray, and `fetch_pairs` there gets single
rows.
"""
