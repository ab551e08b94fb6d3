"""Attaching what a VM is given: opening.py asks C, and a kind's module knows the ways out of what C says.

What is opened is owned by the caller; nothing here knows about KVM or about the unikernel.
"""
