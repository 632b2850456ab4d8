"""Training: sessions on a trunk, in a child process that a torch-free parent supervises."""
