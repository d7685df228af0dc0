"""Checkpoints and runs as text, tables, plots, HTML reports and a live screen, for people to read.

Main doors: `text`, `table`, `variables`, `plot`, `html`, `watch_view`, `prometheus`.

May import: store and the words.
"""
