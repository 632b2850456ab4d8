"""Use cases. A service exists only where a decision is made; none of them knows HTTP or commits."""
