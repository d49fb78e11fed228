"""Run the command line by `python -m widelimit`."""

from widelimit.cli import main

if __name__ == "__main__":
    main()
