"""Generating text on a trunk, without HTTP: what serving and learning by reward both sample with.

Many sequences share each packed step; in what order, and who is answered, is up to the caller.
"""
