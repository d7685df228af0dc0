"""Position of a fit in its data: captured at a save, reached again at a resume.

Main doors: `source` (kind, capture and restore of a data source), `replay` (skip what was trained already),
`loader_position` (loaders that know their position), `exactness` (what cannot be exact).

May import: what `training` may.
"""
