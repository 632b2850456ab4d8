"""One experiment a file: a function of a bench, an installation's kind and a size."""
