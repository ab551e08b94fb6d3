"""Attaches what a VM is given: opening.py asks C, and the module of a kind knows the ways out of what C says.

The caller owns what is opened. Nothing here knows about KVM or about the unikernel.
"""
