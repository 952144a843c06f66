"""Faster ways of running any rule; nothing here knows one by name."""
