"""Worlds for reinforcement learning, many copies in one process."""
