"""Weights of other projects: which there are, under which licence, and how they come to this machine."""
