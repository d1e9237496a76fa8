"""What the incoming weights of a fresh unit are drawn from.

laws         the distributions, each drawn by unit from a generator
initializer  the initializer that a model defines itself, called on a copy of it
untrained    what shows that a network has trained already
start        at which scale it started, where that is not its modules' own
"""
