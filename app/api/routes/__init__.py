"""One file of routes for each kind of object. A route opens and closes its own transaction."""
