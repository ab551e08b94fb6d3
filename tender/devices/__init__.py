"""Attaching what a VM is given: each function opens one device and says plainly why it cannot.

What is opened is owned by the caller; nothing here knows about KVM or about the unikernel.
"""
