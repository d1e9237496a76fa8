"""What experiments are made of: networks, streams of pictures, learners that more than one of them uses."""
