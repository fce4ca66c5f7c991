"""What leaves the house: the classifier of one task as a file of its own, and the card of an adapter."""
