"""Helpers for testing Tender itself and unikernels that run on it; nothing here is needed to run a VM."""
