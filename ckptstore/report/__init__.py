"""Checkpoints and runs as text, tables, plots and HTML reports, for people to read.

Main doors: `text`, `table`, `variables`, `plot`, `html`.

May import: store and the words.
"""
