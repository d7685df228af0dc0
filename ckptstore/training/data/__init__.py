"""Position of a fit in its data: captured at a save, reached again at a resume.

Start with `replay` (captures the position, and skips batches already trained on). It uses `source` (state of a data
source; `attributes` selects it), `loader_position` (loaders that report their position), `validation` (position in the
validation data) and `exactness` (reasons why a resume may not be exact).

May import: what `training` may.
"""
