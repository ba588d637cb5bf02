"""Frozen values and pure rules of the domain; knows no I/O, no clock and no other room of Sorna."""
