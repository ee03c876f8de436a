"""Faults on purpose: kills, damage, full disks, and what is left afterwards."""
