"""Evaluation of representations: kNN and linear classification of frozen features."""
