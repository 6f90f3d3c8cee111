"""``python -m rsvlm`` is the command ``rsvlm``."""

from rsvlm.cli import main

if __name__ == "__main__":
    main()
