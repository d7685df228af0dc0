"""Tries to lose a checkpoint: kills, power cuts, failing calls, full disks; run it as ``python tools/crash``."""
