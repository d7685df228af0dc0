"""Trainings of several real processes on CPU devices, disturbed at each step of a save, and started again."""
