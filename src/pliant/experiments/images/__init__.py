"""What experiments are made of: networks, streams of images, learners that more than one of them uses."""
