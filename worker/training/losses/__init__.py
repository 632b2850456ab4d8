"""Losses as pure functions of tensors: no model, no session, no step of training is known here."""
