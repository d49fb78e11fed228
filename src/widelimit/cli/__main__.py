"""`python -m widelimit.cli`."""

from widelimit.cli.app import main

if __name__ == "__main__":
    main()
