"""Runs that learn from rewards: prompts, the answers sampled to them, and their grades."""
