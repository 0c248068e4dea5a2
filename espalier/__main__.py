"""`python -m espalier` is the command `espalier`."""

from espalier.cli import main

if __name__ == "__main__":
    main()
