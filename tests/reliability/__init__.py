"""Kills, damaged configs and files, and numbers that are not numbers, at random; see conftest.py."""
