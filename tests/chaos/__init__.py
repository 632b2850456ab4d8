"""The monkey: real processes under faults, and a checker that trusts only rows and the step log."""
