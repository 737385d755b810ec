"""`python -m diastole.cluster` is `diastole`."""

from .cli import main

main()
