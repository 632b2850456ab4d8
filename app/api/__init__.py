"""HTTP: the only folder that knows it. Routes parse, call a use case, and answer in wire types."""
