"""What a representation is worth: kNN and linear evaluation of frozen features."""
