"""What several tests stand on: real servers, real processes, and a stand-in for an engine."""
