"""Kinds of attacks that tests/attack.py runs against the command line, and what they share with the test suite."""
