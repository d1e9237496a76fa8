"""What everything else may stand on: initial bounds, saved states, choices by name, what belongs to the whole process."""
