"""Pliant inside other people's training loops: one module for each library, imported by its own name."""
