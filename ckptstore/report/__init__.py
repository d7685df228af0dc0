"""Checkpoints as text, tables, plots and pages.

Main doors: `text`, `table`, `plot`, `html`.

May import: store and the words.
"""
