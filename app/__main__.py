"""`python -m app` is the `tunesmith` command."""

from app.cli import main

main()
