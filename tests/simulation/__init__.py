"""Turnlog's own code in a world made of one seed: its clock, its store, its network and everything that goes wrong."""
