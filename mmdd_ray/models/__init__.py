"""Names to models: CLIP, generators, captioners, students, classifiers, and the tiny zoo that ships with the package.

Plain torch; no file here imports Ray. Imports `storage` and `config`. A new kind of generator or captioner is a file in
its folder; see there.
"""
