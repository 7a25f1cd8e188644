"""The report of a run: ``report.json`` for programs, ``report.html`` for people, and a table for a terminal.

``build.build_report`` gives the dict that ``report.json`` holds, ``page.write_report`` writes both files, and
``table.summary_table`` the table. ``comparison.py`` does the same for several runs beside each other.
"""
