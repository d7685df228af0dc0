"""Fingerprint of a run: architecture, optimizer, backend, versions; and how two of them differ.

Main doors: `fingerprint`, `difference`.

May import: what `training` may.
"""
