"""Faster ways to run any rule; nothing here names a particular rule."""
