"""Reinforcement learning in worlds that change: environments stepped side by side, and agents that learn in them."""
