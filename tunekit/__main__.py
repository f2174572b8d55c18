"""Run the program as `python -m tunekit`."""

from .cli import main

if __name__ == "__main__":
    main()
