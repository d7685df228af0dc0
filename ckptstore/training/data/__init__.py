"""Where a fit stands in its data, and how it gets there again.

Main doors: `source` (kind, capture and restore of a data source), `replay` (skip what was trained already),
`loader_position` (loaders that know their position), `exactness` (what cannot be exact).

May import: what `training` may.
"""
