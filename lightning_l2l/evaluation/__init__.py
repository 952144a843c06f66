"""Races against tuned baselines, and what they leave behind."""
