"""Fingerprint of a run: architecture, optimizer, backend, versions; and how two of them differ.

Main doors: `fingerprint`, `fit_data` (what a fit trains on), `difference`, `finished` (is a finished run this fit's?).

May import: what `training` may.
"""
